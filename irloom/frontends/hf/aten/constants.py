"""Translations of what makes tensors out of nothing, and of triangles cut from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from irloom.frontends.hf.aten.core import own_tokens, static, tensor, translates
from irloom.frontends.hf.aten.elementwise import binary, where
from irloom.frontends.hf.aten.shape import full, full_like
from irloom.frontends.hf.views import View, viewed
from irloom.ir import ops
from irloom.ir.dims import Dim, symbols
from irloom.ir.elem import elem_of
from irloom.ir.errors import TraceError


@translates("aten.empty.memory_format")
def empty(dims: Sequence[Dim], dtype: torch.dtype | None = None, **_: Any) -> Any:
    """What is not written stays zero, so that a model that forgets some of it is the same every time."""
    return full(dims, 0, dtype or torch.float32)


@translates("aten.new_empty.default", "aten.new_zeros.default")
def new_zeros(x: Any, dims: Sequence[Dim], dtype: torch.dtype | None = None, **_: Any) -> Any:
    return new_full(x, dims, 0, dtype)


@translates("aten.new_ones.default")
def new_ones(x: Any, dims: Sequence[Dim], dtype: torch.dtype | None = None, **_: Any) -> Any:
    return new_full(x, dims, 1, dtype)


@translates("aten.new_full.default")
def new_full(x: Any, dims: Sequence[Dim], value: float, dtype: torch.dtype | None = None, **_: Any) -> Any:
    return full(dims, value, dtype or tensor(x).value.type.plain.torch)


@translates("aten.empty_like.default")
def empty_like(x: Any, **options: Any) -> View:
    return full_like(x, 0, **options)


@translates("aten.arange.default")
def arange_from_0(end: Dim | float, **options: Any) -> View:
    return arange(0, end, **options)


@translates("aten.arange.start")
def arange(start: Dim | float, end: Dim | float, dtype: torch.dtype | None = None, **options: Any) -> View:
    return arange_step(start, end, dtype=dtype)


@translates("aten.arange.start_step")
def arange_step(
    start: Dim | float, end: Dim | float, step: float = 1, dtype: torch.dtype | None = None, **options: Any
) -> View:
    """Counting from number to number. A count of tokens that is their position was found before."""
    if _counts_tokens(start) or _counts_tokens(end):
        raise TraceError(
            f"the model counts tokens from {start} to {end}, and not as their positions in the sequence",
            hint="a packed batch has several sequences; only positions say where a token stands",
        )
    given = (start, end, step)
    usual = torch.float32 if any(isinstance(x, float) for x in given) else torch.int64
    a, b, by = (int(x) if isinstance(x, float) and x.is_integer() else x for x in given)
    made = range(static(a, "a start"), static(b, "an end"), static(by, "a step"))
    stop = made.start + len(made) * made.step
    return View.of(ops.arange(start=made.start, stop=stop, step=made.step, elem=elem_of(dtype or usual)))


def _counts_tokens(x: Dim | float) -> bool:
    return not isinstance(x, float) and bool(symbols(x))


@translates("aten.tril.default")
def tril(x: Any, diagonal: int = 0) -> View:
    return _triangle(x, diagonal, lower=True)


@translates("aten.triu.default")
def triu(x: Any, diagonal: int = 0) -> View:
    return _triangle(x, diagonal, lower=False)


def _triangle(x: Any, diagonal: int, lower: bool) -> View:
    """Entries on one side of a diagonal of the last two dims, zeros on the other."""
    x = tensor(x)
    m, n = (static(x.dims[own_tokens(x, d, "a triangle")], "a side of a triangle") for d in (-2, -1))
    rows = viewed(ops.arange(stop=m, elem=elem_of(torch.int64)), [x.rank - 2], x.rank)
    columns = viewed(ops.arange(stop=n, elem=elem_of(torch.int64)), [x.rank - 1], x.rank)
    inside = binary(ops.ge if lower else ops.le, binary(ops.add, rows, diagonal), columns)
    return where(inside, x, 0)
