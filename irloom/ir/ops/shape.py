"""Ops that move entries without computing on them. Their result dims follow from attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..dims import Dim, product
from ..elem import Elem
from ..errors import IRError
from ..op import Attrs, op
from ..signature import Operand
from ..types import Type


def _tensor(operand: Operand, name: str) -> Type:
    if not isinstance(operand, Type):
        raise IRError(f"{name}: the operand is {operand}, not a tensor")
    return operand


def _dim(t: Type, dim: Any, name: str) -> int:
    if not isinstance(dim, int) or not -t.rank <= dim < t.rank:
        raise IRError(f"{name}: dim {dim} of {t} does not exist")
    return dim % t.rank


@op("_ -> _")
def reshape(x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
    """The same entries in row-major order with other ``dims``, which may be symbolic."""
    return x.reshape(dims)


@reshape.shape
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    x, dims = _tensor(operands[0], "reshape"), attrs["dims"]
    assert isinstance(dims, tuple)
    new: tuple[Any, ...] = dims
    if product(x.dims) != product(new):
        raise IRError(f"reshape: {x} has {product(x.dims)} entries, dims {new} make {product(new)}")
    return x.with_dims(new, _axes_after_reshape(x, new))


@reshape.bytes
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """Nothing moves: the result may be another view of the same memory."""
    return 0


def _axes_after_reshape(x: Type, new: tuple[Dim, ...]) -> tuple[str | None, ...]:
    """A split dim keeps its axis where it starts a dim of the result at the same entry stride."""
    axes: list[str | None] = [None] * len(new)
    for i, axis in enumerate(x.axes):
        if not axis:
            continue
        ahead = product(x.dims[:i])
        place = next((j for j in range(len(new)) if product(new[:j]) == ahead and new[j] != 1), None)
        if place is None:
            raise IRError(f"reshape: {x} is split over `{axis}` in a dim that dims {new} do not start with")
        axes[place] = axis
    return tuple(axes)


@op("_ -> _")
def permute(x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
    """Reorder dims: dim ``i`` of the result is dim ``dims[i]`` of ``x``."""
    return x.permute(dims)


@permute.shape
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    x, order = _tensor(operands[0], "permute"), attrs["dims"]
    if not isinstance(order, tuple) or sorted(order, key=str) != list(range(x.rank)):
        raise IRError(f"permute: {order} is no order of the dims of {x}")
    places = [i for i in order if isinstance(i, int)]
    return x.with_dims(tuple(x.dims[i] for i in places), tuple(x.axes[i] for i in places))


@op("_ -> _")
def expand(x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
    """Repeat dims of size 1 (and missing leading dims) up to ``dims``."""
    return x.expand(dims)


@expand.shape
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    x, dims = _tensor(operands[0], "expand"), attrs["dims"]
    assert isinstance(dims, tuple)
    new: tuple[Any, ...] = dims
    tail = new[len(new) - x.rank :]
    if len(new) < x.rank or any(a not in (1, b) for a, b in zip(x.dims, tail, strict=True)):
        raise IRError(f"expand: {x} does not broadcast to {new}")
    return x.with_dims(new, (None,) * (len(new) - x.rank) + x.axes)


def _steps(name: str, length: Dim, step: int) -> Dim:
    """How many entries ``step`` apart there are in ``length``."""
    try:
        return -(-length // step)
    except IRError:
        raise IRError(f"{name}: every {step}-th of {length} entries is no dim", hint="step=1") from None


@op("_ -> _")
def slice_(x: Tensor, *, dim: int, start: int = 0, stop: int | None = None, step: int = 1) -> Tensor:
    """Entries ``start`` to ``stop`` (to the end when absent) of one dim, every ``step``-th."""
    stop = x.shape[dim] if stop is None else stop
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, stop, step),)]


@slice_.shape
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    x = _tensor(operands[0], "slice")
    d = _dim(x, attrs["dim"], "slice")
    start, stop, step = attrs["start"], attrs["stop"], attrs["step"]
    full = x.dims[d]
    assert isinstance(start, int) and isinstance(step, int)
    end: Any = full if stop is None else stop
    if x.axes[d]:
        raise IRError(f"slice: dim {d} of {x} is split over `{x.axes[d]}`", hint="all_gather it first")
    last = end if isinstance(end, int) else start
    if step < 1 or start < 0 or (isinstance(full, int) and not start <= last <= full):
        raise IRError(f"slice: {start}:{end}:{step} is outside dim {d} of {x}")
    count = _steps("slice", end - start, step)
    return x.with_dims((*x.dims[:d], count, *x.dims[d + 1 :]), x.axes)


@slice_.bytes
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """Columns that follow each other stay where they are; else what is taken is copied."""
    return 0 if _columns(operands, attrs) else slice_.infer(operands, attrs)[0].nbytes * 2


def _columns(operands: Sequence[Operand], attrs: Attrs) -> bool:
    """Whether the parts of ``dim`` can be seen in the same rows."""
    x = _tensor(operands[0], "columns")
    return _dim(x, attrs["dim"], "columns") > 0 and attrs.get("step", 1) == 1


@op("_ -> _")
def concat(*xs: Tensor, dim: int) -> Tensor:
    """Join tensors along one dim."""
    return torch.cat(xs, dim)


@concat.shape
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    xs = [_tensor(x, "concat") for x in operands]
    if not xs:
        raise IRError("concat: no operands")
    d = _dim(xs[0], attrs["dim"], "concat")
    for x in xs[1:]:
        rest = [(a, b) for i, (a, b) in enumerate(zip(xs[0].dims, x.dims, strict=False)) if i != d]
        if (
            x.rank != xs[0].rank
            or any(a != b for a, b in rest)
            or (x.elem, x.axes) != (xs[0].elem, xs[0].axes)
        ):
            raise IRError(f"concat: {x} does not join {xs[0]} along dim {d}")
    dims = (*xs[0].dims[:d], sum((x.dims[d] for x in xs), 0), *xs[0].dims[d + 1 :])
    return xs[0].with_dims(dims, xs[0].axes)


@op("_ -> _")
def split(x: Tensor, *, dim: int, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Cut one dim into parts of ``sizes``; as many results as sizes."""
    return torch.split(x, list(sizes), dim)


@split.shape
def _(operands: Sequence[Operand], attrs: Attrs) -> tuple[Type, ...]:
    x, sizes = _tensor(operands[0], "split"), attrs["sizes"]
    d = _dim(x, attrs["dim"], "split")
    assert isinstance(sizes, tuple)
    parts: tuple[Any, ...] = sizes
    if sum(parts) != x.dims[d]:
        raise IRError(f"split: sizes {parts} make {sum(parts)}, but dim {d} of {x} is {x.dims[d]}")
    return tuple(x.with_dims((*x.dims[:d], n, *x.dims[d + 1 :]), x.axes) for n in parts)


@split.bytes
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """As those of ``slice``."""
    return 0 if _columns(operands, attrs) else _tensor(operands[0], "split").nbytes * 2


@op("_ -> _")
def pad(x: Tensor, *, dim: int, before: int = 0, after: int = 0, value: float = 0.0) -> Tensor:
    """Extend one dim by ``before`` and ``after`` entries of ``value``."""
    widths = [0, 0] * (x.ndim - 1 - dim % x.ndim) + [before, after]
    return torch.nn.functional.pad(x, widths, value=value)


@pad.shape
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    x, before, after = _tensor(operands[0], "pad"), attrs["before"], attrs["after"]
    d = _dim(x, attrs["dim"], "pad")
    assert isinstance(before, int) and isinstance(after, int)
    if x.axes[d]:
        raise IRError(f"pad: dim {d} of {x} is split over `{x.axes[d]}`", hint="all_gather it first")
    return x.with_dims((*x.dims[:d], x.dims[d] + (before + after), *x.dims[d + 1 :]), x.axes)


@op("-> _")
def arange(*, stop: int, start: int = 0, step: int = 1, elem: Elem) -> Tensor:
    """``start, start + step, ...`` below ``stop``, which may be symbolic."""
    return torch.arange(start, stop, step, dtype=elem.torch)


@arange.shape
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    elem, start, stop, step = attrs["elem"], attrs["start"], attrs["stop"], attrs["step"]
    assert isinstance(elem, Elem) and isinstance(start, int) and isinstance(step, int)
    length: Any = stop
    length = length - start
    return Type(elem, (_steps("arange", length, step),))


@op("-> _")
def full(*, dims: tuple[int, ...], value: float, elem: Elem) -> Tensor:
    """A tensor of ``dims`` filled with ``value``."""
    return torch.full(dims, value, dtype=elem.torch)


@full.shape
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    elem, dims = attrs["elem"], attrs["dims"]
    assert isinstance(elem, Elem) and isinstance(dims, tuple)
    every: tuple[Any, ...] = dims
    return Type(elem, every)
