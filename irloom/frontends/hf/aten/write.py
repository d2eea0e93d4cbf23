"""Translations of writes: what an in-place op makes of its target, and the out-of-place twins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irloom.frontends.hf.aten.core import static, tensor, translates
from irloom.frontends.hf.aten.elementwise import add, where
from irloom.frontends.hf.aten.shape import END, cat, cut, edge
from irloom.frontends.hf.views import View
from irloom.ir.dims import Dim
from irloom.ir.elem import ELEMS
from irloom.ir.errors import TraceError


@translates("aten.copy.default", "aten.fill.Scalar", "aten.fill.Tensor")
def copy(x: Any, src: Any, non_blocking: bool = False) -> Any:
    """What is copied; the target's dims and element follow from where it is written."""
    return src


@translates("aten.zero.default")
def zero(x: Any) -> float:
    return 0.0


@translates("aten.slice_scatter.default")
def slice_scatter(
    x: Any, src: Any, dim: int = 0, start: Dim | None = None, end: Dim | None = END, step: int = 1
) -> View:
    return replaced(tensor(x), dim, start or 0, tensor(src), step)


@translates("aten.select_scatter.default")
def select_scatter(x: Any, src: Any, dim: int, index: int) -> View:
    x = tensor(x)
    return replaced(x, dim, index, tensor(src).unsqueezed(x.dim(dim)), 1)


@translates("aten.index_put.default")
def index_put(x: Any, places: Sequence[Any], values: Any, accumulate: bool = False) -> View:
    """Only where a mask says so: entries at computed places would move between sequences."""
    mask = tensor(places[0])
    if len(places) != 1 or mask.value.type.elem != ELEMS["bool"]:
        raise TraceError("writing at indices has no translation", hint="writing where a mask holds has one")
    x = tensor(x)
    while mask.rank < x.rank:
        mask = mask.unsqueezed(mask.rank)
    given = add(x, values) if accumulate else values
    if isinstance(given, View) and given.rank and any(d != 1 for d in given.dims):
        raise TraceError("writing many values where a mask holds has no translation")
    return where(mask, given, x)


def replaced(x: View, dim: int, start: Any, part: View, step: int) -> View:
    """``x`` with every ``step``-th entry of a dim from ``start`` on replaced by those of ``part``."""
    d = x.dim(dim)
    size, count = static(x.dims[d], "the size of a dim"), static(part.dims[d], "the size of what is written")
    if not count:
        return x
    first = static(edge(start, size, 0), "the start of a slice")
    pieces = [cut(x, d, 0, first)] if first else []
    for i in range(count) if step != 1 else ():
        pieces.append(cut(part, d, i, i + 1))
        end = first + (i + 1) * step if i + 1 < count else size
        if end > first + i * step + 1:
            pieces.append(cut(x, d, first + i * step + 1, end))
    if step == 1:
        pieces += [part, *([cut(x, d, first + count, size)] if first + count != size else [])]
    return cat(pieces, d)
