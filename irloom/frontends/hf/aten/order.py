"""Translations of what sorts, accumulates or sums up along one dim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from irloom.frontends.hf.aten.core import (
    as_elem,
    elementwise,
    on_last,
    own_tokens,
    static,
    tensor,
    translates,
)
from irloom.frontends.hf.aten.elementwise import add, sub
from irloom.frontends.hf.aten.model import reduce
from irloom.frontends.hf.aten.shape import cat, split
from irloom.frontends.hf.views import View, viewed
from irloom.ir import ops
from irloom.ir.elem import elem_of
from irloom.ir.op import Op


def _extreme(name: str, op: Op, sign: Op | None) -> None:
    @translates(name)
    def _(x: Any, dim: int, keepdim: bool = False) -> tuple[View, View]:
        x = tensor(x)
        d = own_tokens(x, dim, "an extreme")
        value, dims = x.with_last(d)
        place = ops.argmax(value if sign is None else sign(value))
        rest = [i for i in dims if i != d]
        where = viewed(place, rest, x.rank)
        return reduce(op, x, d, keepdim), where if keepdim else where.squeezed(d)


_extreme("aten.max.dim", ops.amax, None)
_extreme("aten.min.dim", ops.amin, ops.neg)


@translates("aten.argmax.default")
def argmax(x: Any, dim: int | None = None, keepdim: bool = False) -> View:
    x = tensor(x)
    d = own_tokens(x, -1 if dim is None and x.rank == 1 else x.dim(dim or 0), "an extreme")
    value, dims = x.with_last(d)
    place = viewed(ops.argmax(value), [i for i in dims if i != d], x.rank)
    return place if keepdim else place.squeezed(d)


@translates("aten.sort.default")
def sort(x: Any, dim: int = -1, descending: bool = False) -> tuple[View, View]:
    """The ``k`` largest where ``k`` is all of them."""
    x = tensor(x)
    d = own_tokens(x, dim, "a sort")
    value, dims = x.with_last(d)
    k = static(x.dims[d], "the size of a dim")
    values, places = ops.topk(value if descending else ops.neg(value), k=k)
    return viewed(values if descending else ops.neg(values), dims, x.rank), viewed(places, dims, x.rank)


@translates("aten.argsort.default")
def argsort(x: Any, dim: int = -1, descending: bool = False) -> View:
    return sort(x, dim, descending)[1]


@translates("aten.cumsum.default")
def cumsum(x: Any, dim: int, *, dtype: torch.dtype | None = None) -> View:
    x = tensor(x) if dtype is None else as_elem(tensor(x), elem_of(dtype))
    return on_last(x, dim, ops.cumsum, "a running sum")


@translates("aten.logsumexp.default")
def logsumexp(x: Any, dim: int | Sequence[int], keepdim: bool = False) -> View:
    x = tensor(x)
    (d,) = [dim] if isinstance(dim, int) else dim
    top = reduce(ops.amax, x, d, True)
    total = reduce(ops.sum_, elementwise(ops.exp, tensor(sub(x, top))), d, True)
    out = tensor(add(elementwise(ops.log, total), top))
    return out if keepdim else out.squeezed(d)


@translates("aten.var.dim", "aten.var.correction")
def variance(
    x: Any,
    dim: Sequence[int],
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> View:
    x = tensor(x)
    (d,) = [dim] if isinstance(dim, int) else dim
    count = static(x.dims[x.dim(d)], "the size of a dim")
    lost = (1 if unbiased else 0) if correction is None else correction
    off = tensor(sub(x, reduce(ops.mean, x, d, True)))
    total = reduce(ops.sum_, elementwise(ops.mul, off, off), d, keepdim)
    return elementwise(ops.div, total, float(count - lost))


@translates("aten.std.dim", "aten.std.correction")
def deviation(x: Any, dim: Sequence[int], *args: Any, **options: Any) -> View:
    return elementwise(ops.sqrt, variance(x, dim, *args, **options))


@translates("aten.flip.default")
def flip(x: Any, dims: Sequence[int]) -> View:
    """Entries in the other direction: cut into single ones, joined from the end."""
    x = tensor(x)
    for d in dims:
        x = cat(split(x, 1, own_tokens(x, d, "a flip"))[::-1], d)
    return x


@translates("aten.roll.default")
def roll(x: Any, shifts: Sequence[int], dims: Sequence[int] = ()) -> View:
    x = tensor(x)
    for by, d in zip(shifts, dims, strict=True):
        size = static(x.dims[own_tokens(x, d, "a rotation")], "the size of a dim")
        if by % size:
            x = cat(split(x, [size - by % size, by % size], d)[::-1], d)
    return x
