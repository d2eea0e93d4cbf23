"""Which keys a token sees, and what else is added to its scores: one tensor [B, heads or 1, N, L].

A key is seen by a token of its slot that stands at its place or later. Masks that depend on places alone are
made once a step, for all layers that see alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from irloom.ir.elem import ELEMS, Elem
from irloom.ir.op import Attrs
from irloom.ir.types import Type

from .graph import Graph
from .slots import padded

F32, I32, I64, BOOL = (ELEMS[e] for e in ("f32", "i32", "i64", "bool"))
NEVER = float("-inf")


@dataclass(frozen=True)
class Places:
    """Where tokens stand [1 or B, 1, N, 1] and where keys do [L], i32; ``number`` counts keys.

    A key that stands for several tokens stands where the last of them does.
    """

    at: str
    key: str
    number: str


def places(g: Graph, k: str, cached: bool, stride: int = 1) -> Places:
    """Of a step whose keys are ``k`` [B, KV, L, size]: those of a cache, or of the step alone."""

    def at() -> str:
        count = g("Range", g.constant(0, I32), _count(g, g.given("pad"), 1), g.constant(1, I32))
        along = g("Unsqueeze", count, g.ints(0, 1, 3))
        return g("Add", along, g("Unsqueeze", g.given("past"), g.ints(1, 2, 3))) if cached else along

    def number() -> str:
        return g("Range", g.constant(0, I32), _count(g, k, 2), g.constant(1, I32))

    def key() -> str:
        if stride == 1:
            return numbers
        first = g("Mul", numbers, g.constant(stride, I32))
        return g("Add", first, g.constant(stride - 1, I32))

    numbers = g.once(("number", cached, stride), number)
    return Places(g.once(("at", cached), at), g.once(("key", cached, stride), key), numbers)


def _count(g: Graph, x: str, dim: int) -> str:
    return g("Cast", g.scalar(g("Shape", x, start=dim, end=dim + 1)), to=I32)


def seen(g: Graph, p: Places, window: object, chunk: object) -> str:
    """Which keys tokens see, bool [1 or B, 1, N, L]."""
    out = g("LessOrEqual", p.key, p.at)
    if isinstance(window, int):
        out = g("And", out, g("Greater", p.key, g("Sub", p.at, g.constant(window, I32))))
    if isinstance(chunk, int):
        size = g.constant(chunk, I32)
        out = g("And", out, g("GreaterOrEqual", p.key, g("Mul", g("Div", p.at, size), size)))
    return out


def mask(g: Graph, p: Places, elem: Elem, window: object, chunk: object) -> str:
    """What is added to scores: 0 for keys that are seen, else -inf. Once for all layers that see alike."""

    def make() -> str:
        zero, never = g.constant(0.0, elem), g.constant(NEVER, elem)
        return g("Where", seen(g, p, window, chunk), zero, never)

    return g.once(("mask", p, elem, window, chunk), make)


@dataclass(frozen=True)
class Extra:
    """What an attention op adds beside its mask: values and types of operands, for so many ``heads``."""

    heads: int
    types: Mapping[str, Type | None]
    slopes: str | None
    index: str | None
    bias: str | None

    def type(self, name: str) -> Type:
        """The type of an operand."""
        t = self.types[name]
        assert t is not None
        return t


def scores_added(g: Graph, p: Places, elem: Elem, attrs: Attrs, extra: Extra) -> str:
    """All that is added to scores, in ``elem``."""
    out = mask(g, p, elem, attrs["window"], attrs["chunk"])
    if extra.slopes is not None:
        out = g("Add", out, _slopes(g, p, elem, extra))
    if extra.bias is not None:
        out = g("Add", out, _bias(g, p, elem, extra))
    if extra.index is not None:
        block = attrs["block"]
        assert isinstance(block, int)
        never = g.constant(NEVER, elem)
        out = g("Where", _chosen(g, p, extra, block), out, never)
    return out


def _slopes(g: Graph, p: Places, elem: Elem, extra: Extra) -> str:
    """A slope of each head times how far a key lies ahead, [B or 1, H, N, L]."""
    assert extra.slopes is not None
    ahead = g.once(("ahead", p), lambda: g("Cast", g("Sub", p.key, p.at), to=F32))
    per = g("Reshape", g.cast(extra.slopes, extra.type("slopes").plain, F32), g.ints(1, extra.heads, 1, 1))
    return g.cast(g("Mul", per, ahead), F32, elem)


def _bias(g: Graph, p: Places, elem: Elem, extra: Extra) -> str:
    """What a token adds for the key so many tokens back, [B, H, N, L]; 0 past the last that is given."""
    t, reach = extra.type("bias"), extra.type("bias").dims[2]
    assert extra.bias is not None and isinstance(reach, int)
    near = g.transpose(padded(g, g.cast(extra.bias, t.plain, elem)), 0, 2, 1, 3)

    def back() -> tuple[str, str]:
        ago = g("Sub", p.at, p.key)
        place = g("Clip", ago, g.constant(0, I32), g.constant(reach - 1, I32))
        return g("Less", ago, g.constant(reach, I32)), g("Cast", place, to=I64)

    inside, place = g.once(("ago", p, reach), back)
    like = g("Concat", g("Shape", near, start=0, end=3), g("Shape", p.key), axis=0)
    found = g("GatherElements", near, g("Expand", place, like), axis=3)
    return g("Where", inside, found, g.constant(0.0, elem))


def _chosen(g: Graph, p: Places, extra: Extra, block: int) -> str:
    """Which keys an index of blocks leaves, bool [B, 1 or H, N, L].

    The block that a token stands in is left until it is complete.
    """
    t, size = extra.type("index"), g.constant(block, I32)
    rows = padded(g, g.cast(extra.index or "", t.plain, I32))
    rows = g("Unsqueeze", rows, g.ints(1)) if t.rank == 2 else g.transpose(rows, 0, 2, 1, 3)
    blocks = g.once(("blocks", p, block), lambda: g("Div", p.number, size))
    last = g("Add", g("Div", g("Shape", p.key), g.ints(block)), g.ints(1))
    place = g("Where", g("GreaterOrEqual", rows, g.constant(0, I32)), g("Cast", rows, to=I64), last)
    dims = g("Concat", g("Shape", rows, start=0, end=3), g("Add", last, g.ints(1)), axis=0)
    marks = g("Expand", g.constant(True, BOOL), g("Shape", rows))
    marked = g("ScatterElements", g("Expand", g.constant(False, BOOL), dims), place, marks, axis=3)
    open_ = g("GreaterOrEqual", blocks, g("Div", g("Add", p.at, g.constant(1, I32)), size))
    left = g("Or", g("Gather", marked, blocks, axis=3), open_)
    if t.rank == 2:
        return left
    kv = t.dims[1]
    assert isinstance(kv, int)
    each = g("Expand", g("Unsqueeze", left, g.ints(2)), g.ints(1, 1, extra.heads // kv, 1, 1))
    whole = g("Concat", g.ints(0, extra.heads), g("Shape", left, start=2), axis=0)
    return g("Reshape", each, whole)
