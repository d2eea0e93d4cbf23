"""What a step gives beside tokens: positions, slots, and the caches of the slots.

The caches of a layer are ``NAME.k`` and ``NAME.v``, ``[B, KV heads, L, head dim]``, a state is ``NAME``,
``[B, ...]``; what a step leaves in them comes out as ``NAME.k.out``. ``B`` slots, ``L`` the length of a
cache, ``N`` the most tokens of one slot in this step: all may differ from step to step.
"""

from __future__ import annotations

from dataclasses import dataclass

from irloom.ir.dims import Dim, sym
from irloom.ir.elem import ELEMS, Paged, State
from irloom.ir.graph import Param
from irloom.ir.types import Type

from .graph import Graph

I32 = ELEMS["i32"]
SLOTS, WIDTH, LENGTH = sym("B"), sym("N"), sym("L")


@dataclass(frozen=True)
class Cache:
    """A cache of the program as it is now: the names of its keys and values, or of its states."""

    names: tuple[str, ...]

    @property
    def k(self) -> str:
        """The keys."""
        return self.names[0]

    @property
    def v(self) -> str | None:
        """The values, where it has some."""
        return self.names[1] if len(self.names) > 1 else None


def step_inputs(t: Dim, s: Dim) -> dict[str, Type]:
    """What is given at every step, whatever the program, for its dims of tokens and of sequences.

    See ``backends.slots.SlotStep``, whose arrays these are.
    """
    dims: dict[str, tuple[Dim, ...]] = {
        "positions": (t,),
        "last": (s,),
        "starts": (SLOTS + 1,),
        "past": (SLOTS,),
        "lengths": (SLOTS,),
        "pad": (SLOTS, WIDTH),
        "unpad": (t,),
    }
    return {name: Type(I32, d) for name, d in dims.items()}


def cache_inputs(p: Param) -> list[tuple[str, Type]]:
    """The inputs that hold a cache."""
    elem = p.type.elem
    if isinstance(elem, State):
        return [(p.name, Type(elem.elem, (SLOTS, *p.type.dims[1:])))]
    assert isinstance(elem, Paged)
    length = LENGTH if elem.stride == 1 else sym(f"L{elem.stride}")
    heads, size = p.type.dims[1:]
    values = size if elem.values is None else elem.values
    found = [(f"{p.name}.k", Type(elem.elem, (SLOTS, heads, length, size)))]
    if values:
        found.append((f"{p.name}.v", Type(elem.elem, (SLOTS, heads, length, values))))
    return found


def padded(g: Graph, rows: str) -> str:
    """Packed rows [T, ...] as slots [B, N, ...]."""
    return g("Gather", rows, g.given("pad"), axis=0)


def packed(g: Graph, x: str, dims: tuple[Dim, ...]) -> str:
    """Slots [B, N, ...] as packed rows of ``dims`` [T, ...]."""
    flat = g("Reshape", x, g.ints(-1, *(_whole(d) for d in dims[1:])))
    return g("Gather", flat, g.given("unpad"), axis=0)


def _whole(d: Dim) -> int:
    assert isinstance(d, int)
    return d
