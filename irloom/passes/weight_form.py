"""The normal form of weight expressions: two that move the same entries the same way are equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from irloom.ir.weight_expr import (
    Affine,
    Cast,
    Concat,
    Reshape,
    Slice,
    Transpose,
    WeightExpr,
    operands,
    with_operands,
)

from .algebra import exact
from .fold_weights import element

Dims = Mapping[WeightExpr, tuple[int, ...]]
"""Dims of expressions, as far as they are known: a file is not asked."""


def normal(e: WeightExpr, dims: Dims) -> WeightExpr:
    """``e`` without what does nothing, and with what is one with its neighbour joined. It rounds as it did.

    >>> from irloom.ir.weight_expr import Tensor
    >>> w = Tensor("w")
    >>> normal(Concat((Slice(w, 0, 0, 2), Slice(w, 0, 2, 4)), 0), {w: (4, 8)}) == w
    True
    """
    e = with_operands(e, [normal(x, dims) for x in operands(e)])
    while (simpler := _step(e, dims)) is not None:
        e = simpler
    return e


def _step(e: WeightExpr, dims: Dims) -> WeightExpr | None:
    """One rule; None where none applies."""
    match e:
        case Transpose(Transpose(x)) | Affine(x, 1.0, 0.0) | Affine(Affine(x, -1.0, 0.0), -1.0, 0.0):
            return x
        case Reshape(Reshape(x), new):
            return Reshape(x, new)
        case Reshape(x, new) if dims.get(x) == new:
            return x
        case Cast(x, elem) if element(x) == elem:
            return x
        case Cast(Cast(x, first), elem) if (own := element(x)) is not None and exact(own, first):
            return Cast(x, elem)
        case Slice(x, dim, 0, stop) if dims.get(x, ())[dim : dim + 1] == (stop,):
            return x
        case Slice(Slice(x, dim, first, _), at, start, stop) if dim == at:
            return Slice(x, dim, first + start, first + stop)
        case Slice(Slice(x, dim, first, last), at, start, stop) if dim > at:
            return Slice(Slice(x, at, start, stop), dim, first, last)
        case Slice(Concat(parts, dim), at, start, stop) if dim == at:
            return _part(parts, dim, start, stop, dims)
        case Concat((x,), _):
            return x
        case Concat(parts, dim):
            return _joined(parts, dim)
        case _:
            return None


def _part(parts: Iterable[WeightExpr], dim: int, start: int, stop: int, dims: Dims) -> WeightExpr | None:
    """The part of a concat that a slice lies in."""
    at = 0
    for x in parts:
        size = _size(x, dim, dims)
        if size is None:
            return None
        if at <= start and stop <= at + size:
            return Slice(x, dim, start - at, stop - at) if stop - start < size else x
        at += size
    return None


def _size(x: WeightExpr, dim: int, dims: Dims) -> int | None:
    if isinstance(x, Slice) and x.dim == dim:
        return x.stop - x.start
    return dims[x][dim] if x in dims else None


def _joined(parts: tuple[WeightExpr, ...], dim: int) -> WeightExpr | None:
    """A concat without concats along the same dim in it, and with slices that meet as one."""
    for at, x in enumerate(parts):
        if isinstance(x, Concat) and x.dim == dim:
            return Concat((*parts[:at], *x.parts, *parts[at + 1 :]), dim)
    for at, (a, b) in enumerate(pairwise(parts)):
        match a, b:
            case Slice(x, d, start, meet), Slice(y, e, again, stop) if (x, d, meet) == (
                y,
                e,
                again,
            ) and d == dim:
                return Concat((*parts[:at], Slice(x, d, start, stop), *parts[at + 2 :]), dim)
            case _:
                pass
    return None
