"""From a program to an ONNX graph: the program is inlined, and each node becomes ONNX operators.

Which ones is told by the table: ``@lowers("silu")`` marks the function that writes a node's operators and
gives the names of its results. Rows stay packed; attention and caches see slots (``slots.py``). Why an
operator that ONNX has is not used is noted: see ``Lowered.decomposed``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from irloom.ir.dims import sym
from irloom.ir.elem import ELEMS, SEQS, Cached, Elem, Quant
from irloom.ir.errors import IRError
from irloom.ir.graph import Module, Node, Param, Value, take_name
from irloom.passes.decompose import DECOMPOSED, Decompose
from irloom.passes.inline import Inline
from irloom.passes.layers import split_loc

from .graph import Graph, OnnxNode, Scope
from .quantized import dequantized
from .slots import Cache, cache_inputs, step_inputs
from .weights import plain

Operand = Any
"""The name of a value, the ``Cache`` that it is, a number, or None for what is absent."""
Handler = Callable[..., Any]
TABLE: dict[str, tuple[Handler, tuple[str, ...]]] = {}
"""How each op is lowered, and which of its operands the handler takes as they stand in the program."""


def lowers(*ops: str, raw: tuple[str, ...] = ()) -> Callable[[Handler], Handler]:
    """Register ``fn(lower, node, *operands)``, which writes ``ops`` and gives the names of their results.

    Operands that are ``raw`` come as the program's values: weights that are stored in a form of their own.
    """

    def wrap(fn: Handler) -> Handler:
        for op in ops:
            assert op not in TABLE, f"onnx: two lowerings of {op}"
            TABLE[op] = fn, raw
        return fn

    return wrap


LOGITS = "logits"
WHY = {
    "silu": "ONNX Runtime spells Swish out as Cast, Mul, Sigmoid and Mul, where Sigmoid and Mul do",
    "mish": "ONNX Runtime spells Mish out as well",
}
"""Why ops are written in simpler ones although ONNX has an operator for them."""


@dataclass(frozen=True)
class Style:
    """What an export is for.

    ``attention`` is ``"op"``, ONNX's own operator, or ``"products"``, which ONNX Runtime's CPU provider runs
    faster where few queries share a long cache.
    """

    attention: str = "op"


STYLE = Style()


@dataclass(frozen=True)
class Written:
    """What became of a node of the program: its op, ONNX's ``nodes`` that are its own, and why not one."""

    op: str
    nodes: tuple[OnnxNode, ...]
    why: str = ""


@dataclass
class Lowered:
    """A program as an ONNX graph.

    ``caches`` names the inputs that hold each cache of the program, by its parameter; what renews one leaves
    as that name and ``.out``. ``written`` has an entry for each node of the program.
    """

    graph: Graph
    caches: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    written: list[Written] = field(default_factory=list[Written])

    @property
    def decomposed(self) -> Counter[str]:
        """Which ops are not one operator of ONNX's, why, and how often."""
        return Counter(f"{w.op}: {w.why}" for w in self.written if w.why)


def lower(m: Module, style: Style = STYLE) -> Lowered:
    """The graph of ``m``; ``IRError`` names the op and the place that ONNX cannot express."""
    flat = m.copy()
    Inline().run(flat)
    before = flat.main.nodes
    Decompose(keep=tuple(TABLE)).run(flat)
    found = _Lowering(flat, style).run()
    found.written = _of_program(before, flat.main.nodes, found.written)
    return found


def _of_program(before: Sequence[Node], after: Sequence[Node], parts: Sequence[Written]) -> list[Written]:
    """``parts`` are of the nodes ``after`` decomposition: what takes a node's place has its location."""
    left = set(after)
    gone = {n.loc: n.op.name for n in reversed(before) if n not in left}
    there, found = set(before), list[Written]()
    simpler: dict[str, list[OnnxNode]] = {loc: [] for loc in gone}
    for n, part in zip(after, parts, strict=True):
        if n in there or n.loc not in gone:
            found.append(part)
        else:
            simpler[n.loc] += part.nodes
    for loc, nodes in simpler.items():
        why = f"in simpler operators; {WHY.get(gone[loc], 'ONNX has none for it')}"
        found.append(Written(gone[loc], tuple(nodes), why))
    return found


def expressed() -> set[str]:
    """The ops that ONNX operators compute: those of the table, and those that are written in them."""
    return {*TABLE, *DECOMPOSED}


def _absent(n: Node) -> IRError:
    hint = "a pass may write it in ops that have some; --target cpu runs its body"
    said = f"onnx: {n.op.name}: no ONNX operators compute it"
    return IRError(said, hint).at(f"at {n.loc or n.results[0].name}")


class Lowering:
    """What handlers write to and ask: the graph, and what the program says of its values."""

    def __init__(self, m: Module, style: Style) -> None:
        self.m, self.style = m, style
        t, s = _step_dims(m)
        self.g = Graph(step_inputs(t, s))
        self.env: dict[Value, Operand] = {}
        self.out = Lowered(self.g)
        self.why = ""

    def note(self, reason: str) -> None:
        """Say why the node that is lowered now is not one operator of ONNX's."""
        self.why = reason

    def weight(self, p: Value, elem: Elem) -> str:
        """A matrix or a stack of them in ``elem``, as the program has it: from a weight, or a value."""
        if not isinstance(p, Param) or p.weight is None:
            return self.g.cast(self.env[p], p.type.plain, elem)
        if isinstance(p.type.elem, Quant):
            return dequantized(self.g, p, elem)
        return self.g.weight(plain(p, elem))


class _Lowering(Lowering):
    def run(self) -> Lowered:
        main = self.m.main
        for p in main.data:
            self.env[p] = self._data(p)
        for n in main.nodes:
            self._node(n)
        for r, p in self._returned():
            self._leave(r, p)
        return self.out

    def _data(self, p: Param) -> Operand:
        if isinstance(p.type.elem, Cached):
            made = Cache(tuple(self.g.input(name, t) for name, t in cache_inputs(p)))
            self.out.caches[p.name] = made.names
            return made
        if p.type.elem == SEQS:
            return None
        if p.name in self.g.steps:
            return self.g.given(p.name)
        return self.g.input(p.name, p.type)

    def _node(self, n: Node) -> None:
        path, _ = split_loc(n.loc)
        self.g.scope = Scope(_slashes(path), n.results[0].name)
        if n.op.name not in TABLE:
            raise _absent(n)
        handler, raw = TABLE[n.op.name]
        names = n.op.operands[:1] * len(n.args) if n.op.variadic else n.op.operands
        since, self.why = len(self.g.nodes), ""
        given = [a if name in raw else self._operand(a) for name, a in zip(names, n.args, strict=False)]
        made = handler(self, n, *given, *[None] * (len(names) - len(given)))
        results = made if isinstance(made, tuple) else (made,)
        assert len(results) == len(n.results), n.op.name
        own = [node for node in self.g.nodes[since:] if not node.shared]  # by its name, which changes below
        self.out.written.append(Written(n.op.name, tuple(own), self.why))
        for value, result in zip(n.results, results, strict=True):
            self.env[value] = self._named(value, result, since)

    def _named(self, v: Value, made: Operand, since: int) -> Operand:
        """A value of the program keeps its name, where a new ONNX value stands for it."""
        if not isinstance(made, str):
            return made
        new = any(made in node.outputs for node in self.g.nodes[since:])
        if new and v.name not in self.g.taken:
            self.g.taken.add(v.name)
            self.g.rename(made, v.name, since)
            made = v.name
        if new:
            self.g.types[made] = v.type
        return made

    def _operand(self, a: Any) -> Operand:
        if isinstance(a, Param) and a.weight is not None:
            elem = a.type.elem
            return self.weight(a, ELEMS["f32"] if isinstance(elem, Quant) else a.type.plain)
        return self.env[a] if isinstance(a, Value) else a

    def _returned(self) -> list[tuple[Value, Param | None]]:
        """What leaves, and of a cache the parameter that it renews."""
        main = self.m.main
        caches = iter([p for p in main.data if isinstance(p.type.elem, Cached)])
        return [(r, next(caches) if isinstance(r.type.elem, Cached) else None) for r in main.returns]

    def _leave(self, r: Value, p: Param | None) -> None:
        g, made = self.g, self.env[r]
        g.scope = Scope()
        if p is None:
            g.outputs[self._alias(made, LOGITS)] = r.type
            return
        for now, was in zip(made.names, self.env[p].names, strict=True):
            g.outputs[self._alias(now, f"{was}.out")] = g.inputs[was]

    def _alias(self, made: str, name: str) -> str:
        """A value that leaves under ``name``."""
        g = self.g
        if made == name:
            return name
        name = take_name(name, g.taken)
        if made in g.inputs or made in g.outputs or made in g.weights:
            g.nodes.append(_identity(made, name))
        else:
            g.rename(made, name, 0)
            g.types.pop(made, None)
        return name


def _identity(made: str, name: str) -> OnnxNode:
    return OnnxNode("Identity", [made], [name], {}, f"{name}/Identity")


def _step_dims(m: Module) -> tuple[Any, Any]:
    """The dims of a step: its tokens and its sequences."""
    for p in m.main.data:
        if p.type.elem == SEQS:
            return p.type.dims[0], p.type.dims[1]
    return sym("T"), sym("S")


def _slashes(path: str) -> str:
    """A module path as names of nodes have it; the number of a layer stays with its list.

    >>> _slashes("model.layers.3.self_attn.q_proj")
    'model/layers.3/self_attn/q_proj'
    """
    parts: list[str] = []
    for part in path.split("."):
        if part.isdigit() and parts:
            parts[-1] += f".{part}"
        else:
            parts.append(part)
    return "/".join(parts)
