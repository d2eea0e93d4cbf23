"""Translations of products, reductions, normalizations and attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from irloom.frontends.hf.aten.core import (
    Mask,
    Stored,
    as_elem,
    elementwise,
    on_last,
    own_tokens,
    rows,
    static,
    tensor,
    translates,
)
from irloom.frontends.hf.aten.elementwise import add
from irloom.frontends.hf.views import View, viewed
from irloom.ir import ops
from irloom.ir.elem import elem_of
from irloom.ir.errors import TraceError
from irloom.ir.op import Op


@translates("aten.linear.default")
def linear(x: Any, weight: Any, bias: Any = None) -> View:
    x = tensor(x)
    value, dims = x.with_last(own_tokens(x, -1, "a product"))
    out = ops.linear(value, tensor(weight).rowmajor().value, _plain(bias))
    return viewed(out, dims, x.rank)


@translates("aten.addmm.default")
def addmm(bias: Any, x: Any, weight: Any, beta: float = 1, alpha: float = 1) -> View:
    if beta != 1 or alpha != 1:
        raise TraceError(f"addmm with beta {beta} and alpha {alpha} has no translation")
    bias = tensor(bias)
    if bias.rank == 1:
        return linear(x, tensor(weight).swapped(0, 1), bias)
    return tensor(add(matmul(x, weight), bias))


@translates("aten.matmul.default", "aten.bmm.default", "aten.mm.default")
def matmul(a: Any, b: Any) -> View:
    a, b = tensor(a), tensor(b)
    if a.rank > 1 and b.rank > 1 and a.dims[-1] == 1 == b.dims[-2]:
        return elementwise(ops.mul, a, b)  # an outer product, as of positions and frequencies
    own_tokens(a, -1, "a product")
    if b.rank == 2:
        return linear(a, b.swapped(0, 1))
    if a.rank == 2 < b.rank:
        return linear(b.swapped(-1, -2), a).swapped(-1, -2)
    if a.rank != b.rank or a.rank < 3:
        raise TraceError(f"a product of {a.dims} and {b.dims} has no translation")
    outer = [d for d in range(a.rank - 2) if a.order[d] is not None or b.order[d] is not None]
    if any(a.dims[d] != b.dims[d] for d in outer):
        raise TraceError(f"a product of {a.dims} and {b.dims} broadcasts, which has no translation")
    wanted = [*outer, a.rank - 2, a.rank - 1]
    return viewed(ops.matmul(a.arranged(wanted), b.arranged(wanted)), wanted, a.rank)


@translates("aten.baddbmm.default")
def baddbmm(bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> View:
    if beta != 1 or alpha != 1:
        raise TraceError(f"baddbmm with beta {beta} and alpha {alpha} has no translation")
    return tensor(add(matmul(a, b), tensor(bias)))


@translates("aten.outer.default")
def outer(a: Any, b: Any) -> View:
    return elementwise(ops.mul, tensor(a).unsqueezed(1), tensor(b).unsqueezed(0))


def _plain(x: Any) -> Any:
    return None if x is None else tensor(x).rowmajor().value


def _reduction(name: str, op: Op) -> None:
    @translates(name)
    def _(
        x: Any, dims: int | Sequence[int], keepdim: bool = False, *, dtype: torch.dtype | None = None
    ) -> View:
        out = tensor(x) if dtype is None else as_elem(tensor(x), elem_of(dtype))
        each = [dims] if isinstance(dims, int) else list(dims)
        for d in sorted((out.dim(d) for d in each), reverse=True):
            out = reduce(op, out, d, keepdim)
        return out


for _name, _op in {
    "aten.mean.dim": ops.mean,
    "aten.sum.dim_IntList": ops.sum_,
    "aten.amax.default": ops.amax,
    "aten.amin.default": ops.amin,
}.items():
    _reduction(_name, _op)


def reduce(op: Op, x: View, d: int, keep: bool) -> View:
    """A reduction of one dim, which stays with size 1 where ``keep`` says so."""
    at = x.order[own_tokens(x, d, "a reduction")]
    if at is None:
        return x if keep else x.squeezed(d)
    value = op(x.value, dim=at - x.value.type.rank, keep=keep)
    if keep:
        return View(value, x.order)
    order = (o if o is None or o < at else o - 1 for i, o in enumerate(x.order) if i != d)
    return View(value, tuple(order))


@translates("aten.linalg_vector_norm.default")
def vector_norm(x: Any, ord: float = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> View:
    x = tensor(x)
    if ord not in (1, 2) or dim is None:
        raise TraceError(f"a norm of order {ord} over {dim} has no translation", hint="1 and 2 have")
    parts = elementwise(ops.abs_, x) if ord == 1 else elementwise(ops.mul, x, x)
    (d,) = [dim] if isinstance(dim, int) else dim
    total = reduce(ops.sum_, parts, x.dim(d), keepdim)
    return total if ord == 1 else elementwise(ops.sqrt, total)


@translates("aten.softmax.int", "aten._softmax.default")
def softmax(x: Any, dim: int, dtype: torch.dtype | bool | None = None) -> View:
    x = as_elem(tensor(x), elem_of(dtype)) if isinstance(dtype, torch.dtype) else tensor(x)
    return on_last(x, dim, ops.softmax, "a softmax")


@translates("aten.scaled_dot_product_attention.default")
def small_attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> View:
    """Attention inside of each token, over a fixed number of keys. That over tokens was found before."""
    q = tensor(q)
    own_tokens(tensor(k), -2, "attention that is written in no known way")
    if mask is not None or is_causal or enable_gqa:
        raise TraceError(
            "attention over a fixed number of keys with a mask or shared heads has no translation"
        )
    scores = matmul(q, tensor(k).swapped(-1, -2))
    size = static(q.dims[-1], "the size of a head")
    weights = softmax(elementwise(ops.mul, scores, size**-0.5 if scale is None else scale), -1)
    return matmul(weights, v)


@translates("aten.layer_norm.default")
def layer_norm(
    x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> View:
    x = _one_dim(x, shape, "layer_norm")
    w, b = _plain(weight), _plain(bias)
    return on_last(x, -1, lambda v: ops.layer_norm(v, w, b, eps=eps), "a normalization")


@translates("aten.rms_norm.default")
def rms_norm(x: Any, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> View:
    x = _one_dim(x, shape, "rms_norm")
    small = torch.finfo(x.value.type.plain.torch).eps if eps is None else eps
    w = _plain(weight)
    return on_last(x, -1, lambda v: ops.rms_norm(v, w, eps=small), "a normalization")


def _one_dim(x: Any, shape: Sequence[int], what: str) -> View:
    if len(shape) != 1:
        raise TraceError(f"{what} over {len(shape)} dims has no translation", hint="only the last dim")
    return tensor(x)


@translates("irloom.attention_mask.default")
def attention_mask(queries: Any, keys: Any, kind: str, size: int, *_: Any) -> Mask:
    return Mask(kind, size)


@translates("irloom.kv_store.default")
def kv_store(k: Any, v: Any, layer: int, past: Any) -> tuple[Stored, Stored]:
    return Stored(tensor(k), layer), Stored(tensor(v), layer)


@translates("irloom.attention.default")
def attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    sinks: Any,
    scale: float,
    softcap: float,
    window: int,
    causal: bool,
    layer: int,
    chunk: int = 0,
    slopes: Sequence[float] | None = None,
    index: Any = None,
    block: int = 1,
    bias: Any = None,
    *,
    seqs: Any,
    constant: Any,
) -> View:
    k, v = (x.view if isinstance(x, Stored) else tensor(x) for x in (k, v))
    heads = [x.arranged((2, 1, 3)) for x in (tensor(q), k, v)]
    seen = {"window": window or None, "chunk": chunk or None} if mask is None else _seen(mask)
    if mask is None and not causal:
        raise TraceError("attention sees later tokens", hint="only decoders, which look back, can be traced")
    given = [
        seqs,
        _sinks(sinks),
        None if slopes is None else constant("slopes", torch.tensor(slopes)),
        None if index is None else rows(index),
        None if bias is None else tensor(bias).arranged((2, 1, 3)),
    ]
    while given[-1] is None:
        given.pop()
    out = ops.attention(*heads, *given, scale=scale, softcap=softcap or None, block=block, **seen)
    return viewed(out, (1, 2, 3), 4)


def _sinks(sinks: Any) -> Any:
    """One score per head [H], or per token and head [B, H, T, 1]."""
    return _plain(sinks) if sinks is None or tensor(sinks).rank == 1 else tensor(sinks).arranged((2, 1))


def _seen(mask: Any) -> dict[str, int]:
    """How far an attention with this mask looks back, as its attributes."""
    match mask:
        case Mask(kind="causal"):
            return {}
        case Mask(kind="sliding", size=size):
            return {"window": size}
        case Mask(kind="chunked", size=size):
            return {"chunk": size}
        case Mask(kind=kind):
            raise TraceError(
                f"attention with a {kind} mask has no translation",
                hint="causal, sliding and chunked masks have one",
            )
        case _:
            raise TraceError("attention takes a mask that depends on tokens")
