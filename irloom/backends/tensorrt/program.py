"""A lowered module: networks, and the ops between them that run their body, in order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from irloom.backends.core import How
from irloom.ir.dims import Dim, Sym, sym
from irloom.ir.elem import ELEMS, Elem
from irloom.ir.graph import Module, Node, Param, Value
from irloom.ir.show import show_attr

from .network import Network, Tensor

B, N = sym("B"), sym("N")
"""Slots of a step, and tokens that a slot brings at most. A network knows how long its caches are, ``L``."""


def step_arrays(tokens: Dim, seqs: Dim) -> dict[str, tuple[Dim, ...]]:
    """The arrays of a step over slots, all i32, as networks take them by name (see ``SlotStep``).

    ``tokens`` and ``seqs`` are the dims of rows and of sequences, ``T`` and ``S``.
    """
    rows: tuple[Dim, ...] = (tokens,)
    return {
        "ids": rows, "positions": rows, "last": (seqs,), "starts": (B + 1,), "past": (B,), "lengths": (B,),
        "pad": (B, N), "unpad": rows,
    }  # fmt: skip


ALIGNMENT = 256
"""Bytes: what an engine's inputs and outputs begin at multiples of."""

STEP = tuple(step_arrays(1, 1))
"""Names that mean an array of the step in every network."""

I32 = ELEMS["i32"]


@dataclass(frozen=True)
class Source:
    """Where a weight of a network comes from: a parameter of the flat ``main``, in a form (see ``forms``)."""

    param: Param
    form: str = ""


@dataclass(frozen=True)
class Cache:
    """Memory that steps renew: keys and values of slots, or the states of sequences.

    Of keys and values ``dims`` are KV heads and features of a key, and ``values`` those of a value (0: keys
    only); networks take ``NAME.k`` and ``NAME.v`` [B, KV heads, L, features]. Of a state ``dims`` are its
    own and ``values`` is None; networks take ``NAME`` [B, *dims].
    """

    name: str
    elem: Elem
    dims: tuple[int, ...]
    values: int | None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names under which networks take it."""
        if self.values is None:
            return (self.name,)
        return (f"{self.name}.k", f"{self.name}.v") if self.values else (f"{self.name}.k",)

    def slot_bytes(self, length: int) -> tuple[int, ...]:
        """Bytes of a slot of each of ``inputs``, in slots of ``length`` keys."""
        if self.values is None:
            return (math.prod(self.dims) * self.elem.bits // 8,)
        heads, features = self.dims
        each = (features, self.values) if self.values else (features,)
        return tuple(heads * length * n * self.elem.bits // 8 for n in each)


@dataclass(frozen=True)
class Segment:
    """A network that one engine runs; its inputs and outputs are arrays of the step, caches and values."""

    network: Network

    @property
    def reads(self) -> tuple[str, ...]:
        """What it takes, by name."""
        return tuple(t.name for t in self.network.inputs)

    @property
    def makes(self) -> tuple[str, ...]:
        """The values it leaves, by name; caches that it renews in place are none."""
        return tuple(name for name in self.network.outputs if name not in self.network.aliases)

    @property
    def step(self) -> tuple[str, ...]:
        """The arrays of the step that it takes."""
        return tuple(name for name in self.reads if name in STEP)


@dataclass(frozen=True)
class Outside:
    """An op that TensorRT cannot express: its body runs between two segments, on the same memory."""

    node: Node
    reason: str

    @property
    def reads(self) -> tuple[str, ...]:
        """The values and caches it takes, by name."""
        return tuple(dict.fromkeys(v.name for v in self.node.values))

    @property
    def makes(self) -> tuple[str, ...]:
        """The values it leaves, by name."""
        return tuple(v.name for v in self.node.results)

    def __str__(self) -> str:
        given = [a.name if isinstance(a, Value) else show_attr(a) for a in self.node.args]
        given += [f"{k}={show_attr(v)}" for k, v in self.node.attrs.items()]
        made = ", ".join(f"{r.name}: {r.type}" for r in self.node.results)
        return f"{made} = {self.node.op.name}({', '.join(given)})  # {self.reason}"


Part = Segment | Outside


@dataclass(frozen=True)
class Lowered:
    """What became of one node: the kinds of layers it is made of, or why it runs its body.

    ``form`` says which of several forms was taken, and why, where there is something to say.
    """

    node: Node
    layers: tuple[str, ...] = ()
    reason: str | None = None
    form: str = ""

    @property
    def how(self) -> How:
        """``native``: one layer, but for casts and views, or the layer made for it; ``composed`` of several;
        or ``outside``.
        """
        if self.reason is not None:
            return "outside"
        own = MADE_FOR.intersection(self.layers)
        return "native" if own or len([x for x in self.layers if x not in PLAIN]) <= 1 else "composed"


MADE_FOR = frozenset({"Attention", "KVCacheUpdate", "RotaryEmbedding", "MoE", "Normalization"})
"""Layers that stand for a whole op of a language model, whatever prepares their inputs."""

PLAIN = ("Cast", "Constant", "Shuffle", "Slice")
"""Layers that compute nothing of their own."""


@dataclass(frozen=True)
class Program:
    """A module as TensorRT runs it. ``module`` is flat: what ``parts`` name are its values and parameters.

    With ``linear`` caches keys and values lie in slots, as ``Cache`` says; else in pages, for bodies alone.
    ``dims`` gives the range of every symbol, ``weights`` the source of each weight of the networks by name,
    ``logits`` the value that is returned, ``nodes`` what became of each node.
    """

    module: Module
    linear: bool
    parts: tuple[Part, ...]
    dims: dict[str, tuple[int, int]]
    caches: tuple[Cache, ...]
    weights: dict[str, Source]
    logits: str
    nodes: tuple[Lowered, ...]

    @property
    def aligned(self) -> bool:
        """Whether every slot of every cache begins at a multiple of ``ALIGNMENT`` bytes."""
        rows = self.dims["L"][1]
        sizes = (n for c in self.caches for n in c.slot_bytes(rows))
        return not any(n % ALIGNMENT for n in sizes)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The networks, in order."""
        return tuple(p for p in self.parts if isinstance(p, Segment))

    @property
    def outside(self) -> tuple[Outside, ...]:
        """The ops that run their body, in order."""
        return tuple(p for p in self.parts if isinstance(p, Outside))

    @property
    def packed(self) -> bool:
        """Whether all attention takes queries as they are, packed, so that one step serves a whole batch."""
        inputs = {t.name for s in self.segments for t in s.network.inputs}
        layers = (p.layer for s in self.segments for p in s.network.layers)
        return "pad" not in inputs and any(getattr(x, "query_starts", None) is not None for x in layers)

    @property
    def values(self) -> dict[str, Tensor]:
        """What flows between parts, and what is returned: a name, an element, dims. Not caches."""
        made = {v.name: v for s in self.module.main.body for v in s.results}
        kept = {name for p in self.parts for name in (*p.reads, *p.makes)}
        return {
            name: Tensor(name, v.type.elem, v.type.dims)
            for name, v in made.items()
            if name in kept and isinstance(v.type.elem, Elem)
        }

    def __str__(self) -> str:
        return "\n".join(_lines(self)) + "\n"


def _lines(p: Program) -> Iterator[str]:
    parts = f"{count(len(p.segments), 'segment')}, {count(len(p.outside), 'op')} outside"
    yield f"# {p.module.model} for tensorrt: {parts}"
    yield "; ".join(f"{name}: dim[{low}, {high}]" for name, (low, high) in p.dims.items())
    number = 0
    for part in p.parts:
        yield ""
        if isinstance(part, Segment):
            yield f"segment {number}:"
            yield from (f"    {line}" for line in str(part.network).splitlines())
            number += 1
        else:
            yield f"outside: {part}"


def count(n: int, thing: str) -> str:
    """``1 segment``, ``2 segments``."""
    return f"{n} {thing}" + "s" * (n != 1)


def symbol(d: Dim) -> str | None:
    """The name of a dim that is one symbol."""
    return str(d) if isinstance(d, Sym) and str(d).isidentifier() else None
