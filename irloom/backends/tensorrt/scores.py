"""Attention as two products and the softmax between them, for what TensorRT's layer has no word for.

Products are in the element of the cache; scores, and what is done to them, in f32, as the op defines it.
"""

from __future__ import annotations

from irloom.ir.dims import Dim
from irloom.ir.elem import ELEMS

from .context import Context
from .layers.elementwise import Select
from .layers.fill import Constant
from .layers.index import Gather, GatherElements
from .layers.matmul import MatrixMultiply
from .layers.reduce import Reduce, Softmax
from .network import Tensor
from .sight import Sight

F32, I32 = ELEMS["f32"], ELEMS["i32"]


def attended(c: Context, q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
    """``q`` [B, heads, N, D], scaled, over ``k`` and ``v`` [B, KV heads, L, ...]: [B, heads, N, E].

    Query heads are apart by KV head and group, [B, KV heads, group, N, ...], so no key is repeated.
    """
    slots, heads, tokens, dim = q.dims
    kv, length, features = k.dims[1], k.dims[2], v.dims[-1]
    assert isinstance(heads, int) and isinstance(kv, int)
    group = heads // kv
    grouped = c.reshape(q, (slots, kv, group, tokens, dim))
    product = MatrixMultiply(grouped, c.reshape(k, (slots, kv, 1, length, dim)), transpose_b=True)
    scores = _shaped(c, c.cast(c.add(product), F32), sight)
    hidden = c.number(float("-inf"), F32, 5)
    scores = c.add(Select(_at_heads(c, sight.mask()), scores, hidden))
    weights = c.cast(_weights(c, scores), v.elem)
    made = c.add(MatrixMultiply(weights, c.reshape(v, (slots, kv, 1, length, features))))
    return c.reshape(made, (slots, heads, tokens, features))


def _at_heads(c: Context, x: Tensor) -> Tensor:
    """What all heads share, [B, 1, N, ...], as [B, 1, 1, N, ...]."""
    slots, one, *rest = x.dims
    return c.reshape(x, (slots, one, 1, *rest))


def _by_head(c: Context, x: Tensor, kv: Dim) -> Tensor:
    """One number a head, [heads], as [1, KV heads, group, 1, 1] in f32."""
    heads = x.dims[0]
    assert isinstance(heads, int) and isinstance(kv, int)
    return c.reshape(c.cast(x, F32), (1, kv, heads // kv, 1, 1))


def _shaped(c: Context, scores: Tensor, sight: Sight) -> Tensor:
    """Scores [B, KV heads, group, N, L] with softcap, slopes and bias."""
    kv = scores.dims[1]
    cap = c.attr("softcap")
    if cap is not None:
        scores = c.binary("prod", c.activation("tanh", c.binary("div", scores, cap)), cap)
    if c.has("slopes"):
        ahead = c.once(("ahead", sight.length), lambda: _ahead(c, sight))
        scores = c.binary("sum", scores, c.binary("prod", _by_head(c, c["slopes"], kv), ahead))
    if c.has("bias"):
        scores = c.binary("sum", scores, c.reshape(_bias(c, sight), scores.dims))
    return scores


def _ahead(c: Context, sight: Sight) -> Tensor:
    """How far a key is ahead of a token, f32[B, 1, 1, N, L]: not above 0 where it is seen."""
    return _at_heads(c, c.cast(c.binary("sub", sight.keys(), sight.at()), F32))


def _bias(c: Context, sight: Sight) -> Tensor:
    """What a token has for each key, f32[B, heads, N, L]: ``bias`` by how far back it is, 0 beyond."""
    near = c.permute(c.add(Gather(c.cast(c["bias"], F32), c.step("pad"))), (0, 2, 1, 3))
    heads, reach = near.dims[1], near.dims[3]
    assert isinstance(heads, int) and isinstance(reach, int)
    back = c.binary("sub", sight.at(), sight.keys())
    inside = c.binary("min", c.binary("max", back, 0), reach - 1)
    every = c.add(Constant(I32, (1, heads, 1, 1), (0,) * heads))
    picked = c.add(GatherElements(near, c.binary("sum", inside, every), 3))
    return c.add(Select(c.binary("less", back, reach), picked, c.number(0.0, F32, 4)))


def _weights(c: Context, scores: Tensor) -> Tensor:
    """The softmax over keys; a sink takes its share of it and gives nothing."""
    if not c.has("sinks"):
        return c.add(Softmax(scores, 4))
    sinks = _sinks(c, scores.dims[1])
    most = c.binary("max", c.add(Reduce("max", scores, (4,))), sinks)
    weights = c.unary("exp", c.binary("sub", scores, most))
    total = c.binary("sum", c.add(Reduce("sum", weights, (4,))), c.unary("exp", c.binary("sub", sinks, most)))
    return c.binary("div", weights, total)


def _sinks(c: Context, kv: Dim) -> Tensor:
    """A score per head [1, KV heads, group, 1, 1], or per token and head [B, KV heads, group, N, 1]."""
    sinks = c["sinks"]
    if len(sinks.dims) == 1:
        return _by_head(c, sinks, kv)
    by_slot = c.permute(c.add(Gather(c.cast(sinks, F32), c.step("pad"))), (0, 2, 1))
    slots, heads, tokens = by_slot.dims
    assert isinstance(heads, int) and isinstance(kv, int)
    return c.reshape(by_slot, (slots, kv, heads // kv, tokens, 1))
