"""Translations of what mixtures of experts are made of: routers, and products with chosen experts."""

from __future__ import annotations

from typing import Any

from irloom.frontends.hf.aten.core import own_tokens, static, tensor, translates
from irloom.frontends.hf.views import View, reshaped, viewed
from irloom.ir import ops
from irloom.ir.errors import TraceError


@translates("irloom.expert_linear.default")
def expert_linear(x: Any, index: Any, weight: Any, bias: Any = None) -> View:
    x, index = tensor(x), tensor(index)
    rows = x.arranged(range(x.rank))
    shift = None if bias is None else tensor(bias).rowmajor().value
    out = ops.expert_linear(rows, index.arranged((0, 1)), tensor(weight).arranged((0, 1, 2)), shift)
    return View.of(out)


@translates("aten.topk.default")
def topk(x: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[View, View]:
    """Unsorted results may come in any order: largest first is one."""
    x = tensor(x)
    if not largest:
        raise TraceError("the smallest entries have no translation", hint="those of the negated have")
    value, dims = x.with_last(own_tokens(x, dim, "a choice of the largest"))
    values, places = ops.topk(value, k=k)
    return viewed(values, dims, x.rank), viewed(places, dims, x.rank)


@translates("aten.gather.default")
def gather(x: Any, dim: int, index: Any, **_: Any) -> View:
    x, index = tensor(x), tensor(index)
    if _flat(x, dim) and _flat(index, dim):
        return _looked_up(x, index, x.dim(dim))
    value, dims = x.with_last(own_tokens(x, dim, "a gathering"))
    places, _ = index.with_last(dim)
    return viewed(ops.gather(value, places), dims, x.rank)


def _flat(x: View, dim: int) -> bool:
    """Whether a tensor is a row along ``dim``."""
    return all(n == 1 for d, n in enumerate(x.dims) if d != x.dim(dim))


def _looked_up(x: View, index: View, d: int) -> View:
    """Entries of one row at any number of places: a table with rows of one entry."""
    table = reshaped(x.arranged([d]), (static(x.dims[d], "the size of a table"), 1))
    found = ops.embedding(index.arranged([d]), table)
    return viewed(reshaped(found, (index.dims[d],)), [d], x.rank)


@translates("aten.scatter.value", "aten.scatter.src")
def scatter(x: Any, dim: int, index: Any, src: Any) -> View:
    x, index = tensor(x), tensor(index)
    last = own_tokens(x, dim, "a scattering")
    dims = [d for d, n in enumerate(x.dims) if d != last and n != 1] + [last]
    given = tensor(src).arranged(dims) if isinstance(src, View) else src
    return viewed(ops.scatter(x.arranged(dims), index.arranged(dims), given), dims, x.rank)
