"""Lowering of attention over the slots of linear caches.

New keys and values are written packed, as the rows are. Queries are padded to the tokens that a slot brings
at most, attended, and packed again. Of attention there are three forms:

- TensorRT's layer with ``lower_right`` where a token sees all that is behind it, on packed queries, which
  nothing is padded for, where the library has a kernel for them;
- its layer with a mask where a window or a chunk ends what it sees (masks are made once a network);
- two products and a softmax between them (``scores``) where the layer has no word for what becomes of a
  score: softcap, sinks, slopes, biases, and values that are not as wide as keys.

Kernels of short floats take heads of a multiple of 8 features; others get zeros behind their own.
"""

from __future__ import annotations

from math import frexp

from irloom.ir.dims import Dim, product
from irloom.ir.elem import ELEMS, Elem

from .context import Context, Pair, lowers
from .layers.attention import Attention
from .layers.cache import KVCacheUpdate
from .layers.index import Gather
from .layers.rules import FLOATS
from .layers.shape import Slice
from .network import Tensor
from .scores import attended
from .sight import Sight


@lowers("kv_append")
def kv_append(c: Context) -> Pair:
    return appended(c, c["k"], c.get("v"))


def appended(c: Context, k: Tensor, v: Tensor | None) -> Pair:
    """The cache that also holds ``k`` and ``v`` [T, KV heads, head dim], each row where its slot's end is."""
    cache = kept(c)
    values = None if cache.v is None or v is None else _written(c, cache.v, v)
    return Pair(cache.name, _written(c, cache.k, k), values)


def kept(c: Context) -> Pair:
    """The cache; ``NotExpressible`` where its element is none that layers keep."""
    cache = c.cache("cache")
    if cache.k.elem.name not in FLOATS:
        raise c.refuse(f"a cache of {cache.k.elem}: layers keep {', '.join(FLOATS)}")
    return cache


def _written(c: Context, cache: Tensor, new: Tensor) -> Tensor:
    return c.add(KVCacheUpdate(cache, c.cast(new, cache.elem), c.step("past"), c.step("starts")))


@lowers("paged_attention")
def paged_attention(c: Context) -> Tensor:
    if c.has("index"):
        raise c.refuse("each token has keys of its own to see, and no layer attends to chosen keys alone")
    cache, q = kept(c), c["q"]
    scaled = scaled_by(c, q, c.attr("scale"), cache.k.elem)
    cache = Pair(cache.name, in_eights(c, cache.k), cache.v and in_eights(c, cache.v))
    made = packed(c, in_eights(c, scaled), cache)
    if made is None:
        made = unpad(c, over_slots(c, pad(c, in_eights(c, scaled)), cache))
    return c.cast(narrowed(c, made, c.result.dims[-1]), q.elem)


def scaled_by(c: Context, q: Tensor, scale: float, elem: Elem) -> Tensor:
    """``q * scale`` in ``elem``: the layer wants queries scaled. One that is no power of 2 stays exact."""
    if scale == 1.0:
        return c.cast(q, elem)
    exact = frexp(scale)[0] == 0.5
    return c.cast(c.binary("prod", q if exact else c.cast(q, ELEMS["f32"]), scale), elem)


def in_eights(c: Context, x: Tensor) -> Tensor:
    """``x`` with zeros to a multiple of 8 features, where it is of short floats."""
    *lead, features = x.dims
    if x.elem.name == "f32" or not isinstance(features, int) or features % 8 == 0:
        return x
    start, size = (0,) * len(x.dims), (*lead, features + -features % 8)
    return c.once(("in eights", x), lambda: c.add(Slice(x, start, size, mode="fill")))


def packed(c: Context, q: Tensor, cache: Pair) -> Tensor | None:
    """What packed queries [T, heads, features] attend to; None where they must be padded.

    A mask is by slot and token, so it asks for padding; kernels for packed queries are of short floats.
    """
    features = q.dims[-1]
    kernel = q.elem.name in ("f16", "bf16") and isinstance(features, int) and features <= 256
    plain = not beyond_the_layer(c, cache) and not Sight(c, cache.k.dims[2]).limits
    if not (c.to.kernels.packed and kernel and plain):
        return None
    c.note("packed queries")
    given = q, cache.k, cache.v or cache.k
    lengths, starts = c.step("lengths"), c.step("starts")
    return c.add(Attention(*given, lengths=lengths, query_starts=starts, causal="lower_right"))


def over_slots(c: Context, q: Tensor, cache: Pair) -> Tensor:
    """What ``q`` [B, heads, N, features] attends to; of keys that are values, too, all features."""
    k, v = cache.k, cache.v or cache.k
    sight = Sight(c, k.dims[2])
    if why := beyond_the_layer(c, cache):
        c.note(f"products and a softmax: {why}")
        return attended(c, q, k, v, sight)
    if sight.limits:
        c.note(f"masked: {sight.limits}")
        return c.add(Attention(q, k, v, mask=sight.mask(), lengths=sight.ends(), decomposable=True))
    return c.add(Attention(q, k, v, lengths=sight.ends(), causal="lower_right", decomposable=True))


def beyond_the_layer(c: Context, cache: Pair) -> str:
    """What of this attention the layer has no word for; empty where it has one for all."""
    kinds = [x for x in ("softcap",) if c.attr(x) is not None]
    kinds += [x for x in ("sinks", "slopes", "bias") if c.has(x)]
    if cache.v is not None and cache.v.dims != cache.k.dims:
        kinds.append(f"values of {cache.v.dims[-1]} features, keys of {cache.k.dims[-1]}")
    return ", ".join(kinds)


def narrowed(c: Context, x: Tensor, features: Dim) -> Tensor:
    """The first ``features`` entries of the last dim: of latents, those that are values."""
    if x.dims[-1] == features:
        return x
    size = (*x.dims[:-1], features)
    return c.add(Slice(x, (0,) * len(size), size))


def pad(c: Context, x: Tensor) -> Tensor:
    """Packed rows [T, heads, ...] by slot: [B, heads, N, ...]; a token that a slot has not is row 0."""
    by_slot = c.add(Gather(x, c.step("pad")))
    return c.permute(by_slot, (0, 2, 1, *range(3, len(by_slot.dims))))


def unpad(c: Context, x: Tensor) -> Tensor:
    """The packed rows [T, heads, features] of [B, heads, N, features]."""
    slots, heads, tokens, features = x.dims
    rows = c.reshape(c.permute(x, (0, 2, 1, 3)), (product((slots, tokens)), heads, features))
    return c.add(Gather(rows, c.step("unpad")))
