"""Positions, rotary embedding, attention, and the cache it reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dims import Dim, divide, product, sym
from ..elem import ELEMS, AnyElem, Paged
from ..errors import IRError
from ..op import Attr, Attrs, op
from ..seqs import PagedCache, Seqs
from ..signature import Operand
from ..types import Type
from .scores import Scores, over_pages, over_tokens


@op("t %s -> t")
def positions(seqs: Seqs) -> Tensor:
    """Each token's position in its sequence, counted from 0."""
    return seqs.positions


@positions.dtype
def _(operands: Sequence[Operand], attrs: Attrs) -> AnyElem:
    return ELEMS["i32"]


def default_frequencies(theta: float, rotary: int, device: torch.device | str = "cpu") -> Tensor:
    """Radians per token of each feature pair, f32[rotary / 2], bit for bit as models compute them."""
    return 1.0 / theta ** (torch.arange(0, rotary, 2, dtype=torch.int64, device=device).float() / rotary)


@op("t h !d, t, !f? -> t h !d")
def rope(
    x: Tensor,
    positions: Tensor,
    inv_freq: Tensor | None = None,
    *,
    theta: float = 10000.0,
    rotary: int | None = None,
    interleaved: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """Rotate feature pairs by each token's position (Su et al., 2021).

    Feature ``i`` pairs with ``i + rotary / 2``, or with its neighbour when ``interleaved``; features past
    ``rotary`` (all when absent) stay. Pair ``i`` turns by ``position * inv_freq[i]``, by default ``theta **
    (-2 * i / rotary)``. Cosine and sine are multiplied by ``scale`` (attention scaling of YaRN and LongRoPE).
    """
    n = x.shape[-1] if rotary is None else rotary
    if inv_freq is None:
        inv_freq = default_frequencies(theta, n, x.device)
    angle = positions.float()[:, None] * inv_freq.float()
    cos, sin = (angle.cos() * scale)[:, None], (angle.sin() * scale)[:, None]
    turned, rest = x[..., :n].float(), x[..., n:]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = turned[..., : n // 2], turned[..., n // 2 :]
        out = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([out.to(x.dtype), rest], -1)


@rope.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    check_rotary("rope", operands[0], attrs["rotary"], operands[2] if len(operands) > 2 else None)


def check_rotary(name: str, x: Operand, rotary: Attr, freq: Operand) -> None:
    """``IRError`` where so many features of ``x`` cannot be rotated by these frequencies."""
    if not isinstance(x, Type) or not x.dims:
        return
    n = x.dims[-1] if rotary is None else rotary
    if isinstance(n, int) and (n % 2 or not 0 < n <= (x.dims[-1] if isinstance(x.dims[-1], int) else n)):
        raise IRError(f"{name}: {n} rotary features of {x}", hint="an even number, at most the head dim")
    if isinstance(freq, Type) and isinstance(n, int) and freq.dims != (n // 2,):
        raise IRError(
            f"{name}: operand `inv_freq` is {freq}, but {n} rotary features have {n // 2} frequencies"
        )


@rope.flops
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """Two products and a sum per entry."""
    x = operands[0]
    assert isinstance(x, Type)
    return product(x.dims) * 3


@op("t (kv g) !d, t kv !d, t kv !e, t %s, *s (kv g)?, (kv g)?, t *j?, t (kv g) !r? -> t (kv g) !e")
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seqs: Seqs,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    index: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
    block: int = 1,
) -> Tensor:
    """Causal attention of each token over its own sequence's tokens in this step.

    ``g`` query heads share a KV head. A token sees the last ``window`` tokens, itself included (all when
    absent), and of these only the ones of its own block of ``chunk`` positions. ``softcap`` squeezes the
    scores into (-softcap, softcap). ``slopes`` then adds to a score the head's slope times ``key position -
    query position`` (ALiBi; Press et al., 2022), and ``bias`` [t, h, r] what the token has for the key ``i``
    tokens back, as far as ``i < r``. ``sinks`` adds one score per head, or per token and head, that takes
    weight and gives nothing. ``index`` i32[t, j] leaves each token only these blocks of ``block`` keys, and
    the one that it stands in until that is complete (-1: none; see ``sparse_index``); i32[t, kv, j] says so
    for each KV head. No cache: this is what a model means; ``kv-cache`` turns it into ``kv_append`` and
    ``paged_attention``.
    """
    how = Scores(scale, sinks, slopes, index, bias, window, chunk, softcap, block)
    return over_tokens(q, k, v, seqs, how)[0]


@op("p kv !d, t kv !d, t kv !e?, t %s -> p kv !d")
def kv_append(cache: PagedCache, k: Tensor, v: Tensor | None, seqs: Seqs) -> PagedCache:
    """The cache that also holds this step's keys and values, at the places the page table gives.

    A cache of keys only (``values=0``) takes none.
    """
    return cache.append(k, v, seqs)


@kv_append.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    check_entry("kv_append", operands[0], operands[2])


def check_entry(name: str, cache: Operand, v: Operand) -> None:
    """``IRError`` where a cache does not keep values such as ``v``."""
    if not isinstance(cache, Type) or not isinstance(cache.elem, Paged):
        raise IRError(f"{name}: operand `cache` is {cache}, not a cache", hint="paged[elem, page][P, kv, d]")
    wanted = cache.dims[-1] if cache.elem.values is None else cache.elem.values
    given = v.dims[-1] if isinstance(v, Type) else 0
    if given != wanted:
        raise IRError(f"{name}: operand `v` has {given} features per head, but {cache} keeps {wanted}")


@op("t (kv g) !d, p kv !d, t %s, *s (kv g)?, (kv g)?, t *j?, t (kv g) !r? -> t (kv g) !e")
def paged_attention(
    q: Tensor,
    cache: PagedCache,
    seqs: Seqs,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    index: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
    block: int = 1,
    values: int | None = None,
) -> Tensor:
    """``attention`` of each token over its whole sequence, read from the pages of a cache.

    Where the cache has keys only, their first ``values`` features are the values (multi-head latent
    attention).
    """
    how = Scores(scale, sinks, slopes, index, bias, window, chunk, softcap, block)
    return over_pages(q, cache, seqs, how, values)[0]


def reach(attrs: Attrs) -> int | None:
    """The most tokens that one token sees by ``window`` and ``chunk``, itself included; None: all."""
    limits = [n for n in (attrs.get("window"), attrs.get("chunk")) if isinstance(n, int)]
    return min(limits, default=None)


def check_limits(name: str, attrs: Attrs) -> None:
    """``IRError`` for limits that leave nothing to see."""
    for limit in ("window", "chunk", "block", "stride"):
        n = attrs.get(limit)
        if isinstance(n, int) and n < 1:
            raise IRError(f"{name}: {limit} {n} leaves nothing to see", hint="at least 1, or none")


@attention.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    check_limits("attention", attrs)


@paged_attention.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    check_limits("paged_attention", attrs)
    check_cache("paged_attention", operands, attrs)


def check_cache(name: str, operands: Sequence[Operand], attrs: Attrs) -> None:
    """``IRError`` where the cache does not hold what attention reads."""
    cache, seen, stride = operands[1], reach(attrs), attrs.get("stride", 1)
    if not isinstance(cache, Type) or not isinstance(cache.elem, Paged):
        raise IRError(f"{name}: operand `cache` is {cache}, not a cache", hint="paged[elem, page][P, kv, d]")
    kept = cache.elem.window
    if kept is not None and (seen is None or seen > kept):
        raise IRError(f"{name}: window {seen} reads past the {kept} tokens that {cache} keeps")
    if cache.elem.stride != stride:
        raise IRError(f"{name}: stride {stride} of {cache}, which keeps every {cache.elem.stride}. token")
    if (cache.elem.values == 0) != (attrs["values"] is not None):
        raise IRError(
            f"{name}: values={attrs['values']} of {cache}",
            hint="a cache of keys only (values=0) needs `values`, any other has its own",
        )


def value_sizes(operands: Sequence[Operand], attrs: Attrs) -> dict[str, Dim]:
    """The features of a value in a cache."""
    cache, values = operands[1], attrs["values"]
    assert isinstance(cache, Type) and isinstance(cache.elem, Paged)
    own = cache.elem.values if cache.elem.values is not None else cache.dims[-1]
    return {"e": values if isinstance(values, int) else own}


def attention_flops(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """Two products per head over the ``C`` tokens that a token attends to."""
    q, v = operands[0], operands[2]
    assert isinstance(q, Type) and isinstance(v, Type)
    return product(q.dims[:-1]) * (q.dims[-1] + v.dims[-1]) * 2 * sym("C")


def paged_attention_flops(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """As those of ``attention``."""
    q, size = operands[0], value_sizes(operands, attrs)["e"]
    assert isinstance(q, Type)
    return product(q.dims[:-1]) * (q.dims[-1] + size) * 2 * sym("C")


def paged_attention_bytes(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """Of the cache, the ``C`` tokens of each sequence that are attended to."""
    q, cache, seqs = operands[0], operands[1], operands[2]
    assert isinstance(q, Type) and isinstance(cache, Type) and isinstance(seqs, Type)
    return q.nbytes * 2 + entry_bytes(cache) * seqs.dims[1] * sym("C")


attention.flops(attention_flops)
paged_attention.sizes(value_sizes)
paged_attention.flops(paged_attention_flops)
paged_attention.bytes(paged_attention_bytes)


@kv_append.bytes
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """The new tokens, read and stored; the rest of the cache stays."""
    cache, k, v = operands[:3]
    assert isinstance(cache, Type) and isinstance(k, Type)
    v = v.nbytes if isinstance(v, Type) else 0
    return k.nbytes + v + entry_bytes(cache) * k.dims[0]


def entry_bytes(cache: Type) -> Dim:
    """Bytes of one entry of a cache: a token, or the tokens of one stride."""
    assert isinstance(cache.elem, Paged)
    return divide(cache.elem.nbytes((1, *cache.dims[1:])), cache.elem.entries)
