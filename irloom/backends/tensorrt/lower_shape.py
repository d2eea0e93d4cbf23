"""Lowering of ops that only move entries, and of those that make values from nothing."""

from __future__ import annotations

from collections.abc import Sequence

from irloom.ir.dims import Dim, Sym
from irloom.ir.elem import ELEMS
from irloom.ir.graph import Value

from .context import Context, lowers
from .layers.fill import DimValues, Linspace
from .layers.shape import Concatenation, Slice
from .network import Tensor


@lowers("reshape")
def reshape(c: Context) -> Tensor:
    return c.reshape(c["x"], c.result.dims)


@lowers("permute")
def permute(c: Context) -> Tensor:
    return c.permute(c["x"], c.attr("dims"))


def expanded(c: Context, x: Tensor, dims: Sequence[Dim]) -> Tensor:
    """``x`` with its dims of 1 repeated up to ``dims``: a slice that stays where it is."""
    x = c.lift(x, len(dims))
    if x.dims == tuple(dims):
        return x
    stride = tuple(1 if a == b else 0 for a, b in zip(x.dims, dims, strict=True))
    return c.add(Slice(x, (0,) * len(dims), tuple(dims), stride))


@lowers("expand")
def expand(c: Context) -> Tensor:
    return expanded(c, c["x"], c.result.dims)


def cut(c: Context, x: Tensor, dim: int, start: int, size: Dim, step: int = 1) -> Tensor:
    """``size`` entries of one dim from ``start`` on, every ``step``-th."""
    rank = len(x.dims)
    at = dim % rank
    starts = tuple(start if i == at else 0 for i in range(rank))
    sizes = tuple(size if i == at else d for i, d in enumerate(x.dims))
    steps = tuple(step if i == at else 1 for i in range(rank))
    return x if sizes == x.dims else c.add(Slice(x, starts, sizes, steps))


@lowers("slice")
def slice_(c: Context) -> Tensor:
    dim, start, step = (c.attr(name) for name in ("dim", "start", "step"))
    return cut(c, c["x"], dim, start, c.result.dims[dim], step)


@lowers("split")
def split(c: Context) -> list[Tensor]:
    x, dim, at = c["x"], c.attr("dim"), 0
    parts: list[Tensor] = []
    for r in c.node.results:
        size = r.type.dims[dim]
        assert isinstance(size, int)
        parts.append(cut(c, x, dim, at, size))
        at += size
    return parts


@lowers("concat")
def concat(c: Context) -> Tensor:
    parts = [c.cast(c.tensor(a), c.result.plain) for a in c.node.args if isinstance(a, Value)]
    return c.add(Concatenation(tuple(parts), c.attr("dim")))


@lowers("pad")
def pad(c: Context) -> Tensor:
    x, dim = c["x"], c.attr("dim")
    at = dim % len(x.dims)
    starts = tuple(-c.attr("before") if i == at else 0 for i in range(len(x.dims)))
    return c.add(Slice(x, starts, c.result.dims, mode="fill", fill=c.attr("value")))


@lowers("arange")
def arange(c: Context) -> Tensor:
    elem = c.result.plain
    made = elem if elem.name in ("f32", "i32", "i64") else ELEMS["f32" if elem.kind == "float" else "i32"]
    ramp = Linspace(made, c.result.dims, float(c.attr("start")), (float(c.attr("step")),))
    return c.cast(c.add(ramp), elem)


@lowers("full")
def full(c: Context) -> Tensor:
    value, elem, dims = c.attr("value"), c.result.plain, c.result.dims
    if isinstance(value, Sym):
        one = c.cast(c.add(DimValues((value,))), elem)
        return expanded(c, c.reshape(one, (1,) * len(dims)), dims)
    return expanded(c, c.number(value, elem, len(dims)), dims)
