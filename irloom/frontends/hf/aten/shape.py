"""Translations of what moves entries: views, joins, cuts, and constants."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch

from irloom.frontends.hf.aten.core import as_elem, own_tokens, static, tensor, translates
from irloom.frontends.hf.views import View, aligned, in_front, reshape, reshaped, viewed
from irloom.ir import ops
from irloom.ir.dims import Dim, product, symbols
from irloom.ir.elem import elem_of
from irloom.ir.errors import TraceError

END = 2**62
"""The library writes "to the end" as a stop near 2**63."""


@translates(
    "aten.alias.default", "aten.clone.default", "aten.contiguous.default", "aten.detach.default",
    "aten.detach_.default", "aten.lift_fresh_copy.default", "aten.lift_fresh.default",
)  # fmt: skip
def same(x: Any, **_: Any) -> Any:
    return x


@translates("aten.dropout.default")
def dropout(x: Any, p: float, train: bool) -> Any:
    if train and p:
        raise TraceError("dropout is on", hint="call model.eval() before tracing")
    return x


@translates("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
def view(x: Any, dims: Sequence[Dim]) -> View:
    return reshape(tensor(x), dims)


@translates("aten.view_as.default", "aten.reshape_as.default")
def view_as(x: Any, like: Any) -> View:
    return reshape(tensor(x), tensor(like).dims)


@translates("aten.flatten.using_ints")
def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> View:
    x = tensor(x)
    a, b = x.dim(start_dim), x.dim(end_dim)
    return reshape(x, (*x.dims[:a], product(x.dims[a : b + 1]), *x.dims[b + 1 :]))


@translates("aten.unflatten.int")
def unflatten(x: Any, dim: int, sizes: Sequence[Dim]) -> View:
    x = tensor(x)
    d = x.dim(dim)
    return reshape(x, (*x.dims[:d], *sizes, *x.dims[d + 1 :]))


@translates("aten.transpose.int")
def transpose(x: Any, a: int, b: int) -> View:
    return tensor(x).swapped(a, b)


@translates("aten.t.default", "aten.numpy_T.default", "aten.mT.default")
def turned(x: Any) -> View:
    return tensor(x).swapped(-1, -2)


@translates("aten.permute.default")
def permute(x: Any, dims: Sequence[int]) -> View:
    return tensor(x).permuted(dims)


@translates("aten.unsqueeze.default")
def unsqueeze(x: Any, dim: int) -> View:
    return tensor(x).unsqueezed(dim)


@translates("aten.squeeze.dim")
def squeeze(x: Any, dim: int) -> View:
    return tensor(x).squeezed(dim)


@translates("aten.squeeze.default")
def squeeze_all(x: Any) -> View:
    x = tensor(x)
    for d in reversed(range(x.rank)):
        x = x.squeezed(d)
    return x


@translates("aten.expand.default")
def expand(x: Any, dims: Sequence[Dim], implicit: bool = False) -> View:
    x = tensor(x)
    while x.rank < len(dims):
        x = x.unsqueezed(0)
    sizes = tuple(old if new == -1 else new for old, new in zip(x.dims, dims, strict=True))
    grown = [d for d in range(x.rank) if sizes[d] != x.dims[d]]
    if not grown:
        return x
    wanted = in_front(sorted({*x.memory(), *grown}), sizes)
    return viewed(ops.expand(x.arranged(wanted), dims=tuple(sizes[d] for d in wanted)), wanted, x.rank)


@translates("aten.expand_as.default")
def expand_as(x: Any, like: Any) -> View:
    return expand(x, tensor(like).dims)


@translates("aten.repeat.default")
def repeat(x: Any, times: Sequence[Dim]) -> View:
    """``times[i]`` copies of dim ``i`` one after another."""
    x = tensor(x)
    while x.rank < len(times):
        x = x.unsqueezed(0)
    for d, n in enumerate(times):
        if n != 1 and x.dims[d] == 1:
            x = expand(x, (*x.dims[:d], n, *x.dims[d + 1 :]))
        elif n != 1:
            x = cat([x] * static(n, "a number of copies"), d)
    return x


@translates("aten.broadcast_tensors.default")
def broadcast_tensors(xs: Sequence[Any]) -> tuple[Any, ...]:
    if not any(isinstance(x, View) for x in xs):
        return tuple(xs)
    views = [tensor(x) for x in xs]
    rank = max(v.rank for v in views)
    dims: list[Dim] = [1] * rank
    for v in views:
        for d, n in enumerate(v.dims, rank - v.rank):
            dims[d] = n if n != 1 else dims[d]
    return tuple(expand(v, dims) for v in views)


@translates("aten.slice.Tensor")
def cut(x: Any, dim: int = 0, start: Dim | None = None, end: Dim | None = None, step: int = 1) -> View:
    x = tensor(x)
    d = x.dim(dim)
    size = x.dims[d]
    first, last = edge(start, size, 0), edge(end, size, size)
    if not isinstance(first, int) and size + first == 0:
        first = 0  # the last T of T tokens
    if isinstance(first, int) and isinstance(last, int):
        last = max(first, last)
    if first == 0 and last == size and step == 1:
        return x
    d = own_tokens(x, dim, "a slice")
    at = x.order[d]
    if at is None:
        raise TraceError(f"a slice {first}:{last} of a dim of size 1 leaves nothing")
    if isinstance(size, int) and not (isinstance(first, int) and isinstance(last, int)):
        hint = "index it by position_ids; were it a cache: attention is given one by irloom, and needs none"
        raise TraceError(f"a slice {first}:{last} of {size} rows that are no table of positions", hint=hint)
    stop = None if last == size else static(last, "the end of a slice")
    first = static(first, "the start of a slice")
    return View(ops.slice_(x.value, dim=at, start=first, stop=stop, step=step), x.order)


def edge(at: Dim | None, size: Dim, default: Dim) -> Dim:
    """Where a slice of ``size`` entries starts or stops: counted from the end below 0, and never outside."""
    if at is None or (isinstance(at, int) and at >= END):
        return default
    if not isinstance(at, int):
        return at
    if not isinstance(size, int):
        return at if at >= 0 else size + at
    return min(max(at if at >= 0 else size + at, 0), size)


@translates("aten.narrow.default")
def narrow(x: Any, dim: int, start: Dim, length: Dim) -> View:
    return cut(x, dim, start, start + length)


@translates("aten.select.int")
def select(x: Any, dim: int, index: int) -> View:
    x = tensor(x)
    if x.dims[x.dim(dim)] == 1:
        return x.squeezed(dim)
    index = index % static(x.dims[own_tokens(x, dim, "a selection")], "the size of a dim")
    return cut(x, dim, index, index + 1).squeezed(dim)


@translates("aten.split.Tensor", "aten.split_with_sizes.default", "aten.split.sizes")
def split(x: Any, sizes: int | Sequence[int], dim: int = 0) -> tuple[View, ...]:
    x = tensor(x)
    d = own_tokens(x, dim, "a split")
    whole = static(x.dims[d], "the size of a dim")
    if isinstance(sizes, int):
        sizes = [min(sizes, whole - at) for at in range(0, whole, sizes)]
    if len(sizes) == 1:
        return (x,)
    value = x.arranged(x.memory()) if x.order[d] is not None else x.arranged([*x.memory(), d])
    dims = x.memory() if x.order[d] is not None else [*x.memory(), d]
    parts = ops.split(value, dim=dims.index(d), sizes=tuple(sizes))
    return tuple(viewed(part, dims, x.rank) for part in parts)


@translates("aten.chunk.default")
def chunk(x: Any, chunks: int, dim: int = 0) -> tuple[View, ...]:
    x = tensor(x)
    whole = static(x.dims[own_tokens(x, dim, "a split")], "the size of a dim")
    return split(x, -(-whole // chunks), dim)


@translates("aten.unbind.int")
def unbind(x: Any, dim: int = 0) -> tuple[View, ...]:
    x = tensor(x)
    return tuple(part.squeezed(dim) for part in split(x, 1, dim))


@translates("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(xs: Sequence[Any], dim: int = 0) -> View:
    views = [tensor(x) for x in xs]
    d = own_tokens(views[0], dim, "a concatenation")
    views = [x for x in views if x.dims[d] != 0] or views[:1]
    if len(views) == 1:
        return views[0]
    _, wanted, rank = aligned(views)
    if d not in wanted:  # weights lie in the library's order; of others tokens stay in front
        whole = not any(symbols(n) for n in views[0].dims)
        at = sum(w < d for w in wanted) if whole else len(wanted)
        wanted = [*wanted[:at], d, *wanted[at:]]
    elem = elem_of(reduce(torch.promote_types, (v.value.type.plain.torch for v in views)))
    values = [as_elem(v, elem).arranged(wanted) for v in views]
    return viewed(ops.concat(*values, dim=wanted.index(d)), wanted, rank)


@translates("aten.stack.default")
def stack(xs: Sequence[Any], dim: int = 0) -> View:
    return cat([tensor(x).unsqueezed(dim) for x in xs], dim)


@translates("aten.repeat_interleave.self_int")
def repeat_interleave(x: Any, repeats: int, dim: int | None = None, **_: Any) -> View:
    x = tensor(x)
    if dim is None:
        raise TraceError("repeat_interleave without a dim flattens tokens")
    d = own_tokens(x, dim, "a repetition")
    wide = stack([x] * repeats, d + 1)
    return reshape(wide, (*x.dims[:d], static(x.dims[d], "the size of a dim") * repeats, *x.dims[d + 1 :]))


@translates("aten.embedding.default")
def embedding(table: Any, ids: Any, *_: Any) -> View:
    table, ids = tensor(table), tensor(ids)
    value = ops.embedding(ids.value, table.rowmajor().value)
    return View(value, (*ids.order, value.type.rank - 1))


@translates("aten.index.Tensor")
def index(x: Any, places: Sequence[Any]) -> View:
    """Indexing along one dim, which is looking rows up."""
    given = [d for d, place in enumerate(places) if place is not None]
    if len(given) != 1:
        raise TraceError("indexing by several tensors has no translation", hint="by one has one")
    return index_select(x, given[0], places[given[0]])


@translates("aten.index_select.default")
def index_select(x: Any, dim: int, places: Any) -> View:
    """Entries of one dim; what ``places`` has for dims takes its place."""
    x, places = tensor(x), tensor(places)
    d = own_tokens(x, dim, "an indexing")
    rest = [i for i in range(x.rank) if i != d and x.order[i] is not None]
    width = product(x.dims[i] for i in rest)
    table = reshaped(x.arranged([d, *rest]), (x.dims[d], width))
    found = View(ops.embedding(places.value, table), (*places.order, places.value.type.rank))
    wide = reshape(found, (*places.dims, *(x.dims[i] for i in range(x.rank) if i != d)))
    order = list(range(places.rank, wide.rank))
    return wide.permuted([*order[:d], *range(places.rank), *order[d:]])


@translates("aten.full.default")
def full(dims: Sequence[Dim], value: float, dtype: torch.dtype | None = None, **_: Any) -> Any:
    if not dims:
        return value
    default = torch.float32 if isinstance(value, float) else torch.int64
    wanted = in_front([d for d, n in enumerate(dims) if n != 1], dims)
    made = ops.full(dims=tuple(dims[d] for d in wanted), value=value, elem=elem_of(dtype or default))
    return viewed(made, wanted, len(dims))


@translates("aten.zeros.default")
def zeros(dims: Sequence[Dim], dtype: torch.dtype | None = None, **options: Any) -> Any:
    return full(dims, 0.0, dtype or torch.float32, **options)


@translates("aten.ones.default")
def ones(dims: Sequence[Dim], dtype: torch.dtype | None = None, **options: Any) -> Any:
    return full(dims, 1.0, dtype or torch.float32, **options)


@translates("aten.full_like.default")
def full_like(x: Any, value: float, dtype: torch.dtype | None = None, **_: Any) -> View:
    """Filled with ``value``, in the dims and the element of ``x`` unless told otherwise."""
    x = tensor(x)
    elem = x.value.type.plain if dtype is None else elem_of(dtype)
    return View(ops.full(dims=x.value.type.dims, value=value, elem=elem), x.order)


@translates("aten.zeros_like.default")
def zeros_like(x: Any, **options: Any) -> View:
    return full_like(x, 0, **options)


@translates("aten.ones_like.default")
def ones_like(x: Any, **options: Any) -> View:
    return full_like(x, 1, **options)


@translates("aten.scalar_tensor.default")
def scalar_tensor(value: float, **_: Any) -> float:
    return value
