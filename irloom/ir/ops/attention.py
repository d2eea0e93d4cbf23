"""Positions, rotary embedding, attention, and the cache it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..dims import Dim, divide, product, sym
from ..elem import ELEMS, AnyElem, Paged
from ..errors import IRError
from ..op import Attrs, op
from ..seqs import PagedCache, Seqs
from ..signature import Operand
from ..types import Type


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
    x, rotary = operands[0], attrs["rotary"]
    if not isinstance(x, Type) or not x.dims:
        return
    n = x.dims[-1] if rotary is None else rotary
    if isinstance(n, int) and (n % 2 or not 0 < n <= (x.dims[-1] if isinstance(x.dims[-1], int) else n)):
        raise IRError(f"rope: {n} rotary features of {x}", hint="an even number, at most the head dim")
    freq = operands[2] if len(operands) > 2 else None
    if isinstance(freq, Type) and isinstance(n, int) and freq.dims != (n // 2,):
        raise IRError(
            f"rope: operand `inv_freq` is {freq}, but {n} rotary features have {n // 2} frequencies"
        )


@rope.flops
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """Two products and a sum per entry."""
    x = operands[0]
    assert isinstance(x, Type)
    return product(x.dims) * 3


@dataclass(frozen=True)
class _Scores:
    """How scores become weights: what the attention ops take beside queries, keys and values."""

    sinks: Tensor | None
    slopes: Tensor | None
    index: Tensor | None
    scale: float
    window: int | None
    chunk: int | None
    softcap: float | None

    def since(self, position: int) -> int:
        """The first position that the token at ``position`` sees."""
        first = 0 if self.window is None else max(0, position - self.window + 1)
        return first if self.chunk is None else max(first, position // self.chunk * self.chunk)

    def of(self, a: int, b: int) -> _Scores:
        """The same for the tokens ``a`` to ``b`` of the step alone."""
        return self if self.index is None else replace(self, index=self.index[a:b])


def _attend(q: Tensor, k: Tensor, v: Tensor, first: int, since: int, how: _Scores) -> Tensor:
    """Of ``q`` [t, H, D] at positions ``first``.., to ``k``, ``v`` [n, KV, D] at ``since``..; f32 softmax."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("thd,shd->hts", q.float(), k.float()) * how.scale
    if how.softcap is not None:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    at = torch.arange(first, first + len(q), device=q.device)[:, None]
    key = torch.arange(since, since + len(k), device=q.device)[None]
    if how.slopes is not None:
        scores = scores + how.slopes.float()[:, None, None] * (key - at)
    seen = key <= at
    if how.window is not None:
        seen = seen & (key > at - how.window)
    if how.chunk is not None:
        seen = seen & (key >= at // how.chunk * how.chunk)
    if how.index is not None:
        seen = seen & (how.index[:, :, None] == key).any(1)
    scores = scores.masked_fill(~seen, float("-inf"))
    if how.sinks is not None:
        scores = torch.cat([scores, how.sinks.float()[:, None, None].expand(-1, len(q), 1)], -1)
    p = torch.softmax(scores, -1)[..., : len(k)]
    return torch.einsum("hts,she->the", p, v.float()).to(q.dtype)


@op("t (kv g) !d, t kv !d, t kv !e, t %s, (kv g)?, (kv g)?, t !j? -> t (kv g) !e")
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seqs: Seqs,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    index: Tensor | None = None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Causal attention of each token over its own sequence's tokens in this step.

    ``g`` query heads share a KV head. A token sees the last ``window`` tokens, itself included (all when
    absent), and of these only the ones of its own block of ``chunk`` positions. ``softcap`` squeezes the
    scores into (-softcap, softcap). ``slopes`` then adds to a score the head's slope times ``key position -
    query position`` (ALiBi; Press et al., 2022). ``sinks`` adds one score per head that takes weight and
    gives nothing. ``index`` i32[t, j] leaves each token only the keys at these positions (-1: none; see
    ``sparse_index``). No cache: this is what a model means; ``kv-cache`` turns it into ``kv_append`` and
    ``paged_attention``.
    """
    how = _Scores(sinks, slopes, index, scale, window, chunk, softcap)
    return torch.cat([_attend(q[a:b], k[a:b], v[a:b], 0, 0, how.of(a, b)) for a, b in seqs.spans()])


@op("p kv !d, t kv !d, t kv !e?, t %s -> p kv !d")
def kv_append(cache: PagedCache, k: Tensor, v: Tensor | None, seqs: Seqs) -> PagedCache:
    """The cache that also holds this step's keys and values, at the places the page table gives.

    A cache of keys only (``values=0``) takes none.
    """
    return cache.append(k, v, seqs)


@kv_append.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    cache, v = operands[0], operands[2]
    if not isinstance(cache, Type) or not isinstance(cache.elem, Paged):
        raise IRError(
            f"kv_append: operand `cache` is {cache}, not a cache", hint="paged[elem, page][P, kv, d]"
        )
    wanted = cache.dims[-1] if cache.elem.values is None else cache.elem.values
    given = v.dims[-1] if isinstance(v, Type) else 0
    if given != wanted:
        raise IRError(f"kv_append: operand `v` has {given} features per head, but {cache} keeps {wanted}")


@op("t (kv g) !d, p kv !d, t %s, (kv g)?, (kv g)?, t !j? -> t (kv g) !e")
def paged_attention(
    q: Tensor,
    cache: PagedCache,
    seqs: Seqs,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    index: Tensor | None = None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
    values: int | None = None,
) -> Tensor:
    """``attention`` of each token over its whole sequence, read from the pages of a cache.

    Where the cache has keys only, their first ``values`` features are the values (multi-head latent
    attention).
    """
    parts: list[Tensor] = []
    how = _Scores(sinks, slopes, index, scale, window, chunk, softcap)
    for s, (a, b) in enumerate(seqs.spans()):
        first = int(seqs.context[s]) - (b - a)
        since = how.since(first)
        k, v = cache.read(seqs, s, since)
        v = v if values is None else k[..., :values]
        parts.append(_attend(q[a:b], k, v, first, since, how.of(a, b)))
    return torch.cat(parts)


def reach(attrs: Attrs) -> int | None:
    """The most tokens that one token sees by ``window`` and ``chunk``, itself included; None: all."""
    limits = [n for n in (attrs.get("window"), attrs.get("chunk")) if isinstance(n, int)]
    return min(limits, default=None)


def _check_limits(name: str, attrs: Attrs) -> None:
    for limit in ("window", "chunk"):
        n = attrs[limit]
        if isinstance(n, int) and n < 1:
            raise IRError(f"{name}: {limit} {n} leaves nothing to see", hint="at least 1, or none")


@attention.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    _check_limits("attention", attrs)


@paged_attention.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    _check_limits("paged_attention", attrs)
    cache, seen = operands[1], reach(attrs)
    if not isinstance(cache, Type) or not isinstance(cache.elem, Paged):
        raise IRError(
            f"paged_attention: operand `cache` is {cache}, not a cache", hint="paged[elem, page][P, kv, d]"
        )
    kept = cache.elem.window
    if kept is not None and (seen is None or seen > kept):
        raise IRError(f"paged_attention: window {seen} reads past the {kept} tokens that {cache} keeps")
    if (cache.elem.values == 0) != (attrs["values"] is not None):
        raise IRError(
            f"paged_attention: values={attrs['values']} of {cache}",
            hint="a cache of keys only (values=0) needs `values`, any other has its own",
        )


@paged_attention.sizes
def _(operands: Sequence[Operand], attrs: Attrs) -> dict[str, Dim]:
    """The features of a value."""
    cache, values = operands[1], attrs["values"]
    assert isinstance(cache, Type) and isinstance(cache.elem, Paged)
    own = cache.elem.values if cache.elem.values is not None else cache.dims[-1]
    return {"e": values if isinstance(values, int) else own}


def _pairs(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """Two products per head over the ``C`` tokens that a token attends to."""
    q, v = operands[0], operands[2]
    assert isinstance(q, Type) and isinstance(v, Type)
    return product(q.dims[:-1]) * (q.dims[-1] + v.dims[-1]) * 2 * sym("C")


attention.flops(_pairs)


@paged_attention.flops
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """As those of ``attention``."""
    q, size = operands[0], paged_attention.hooks["sizes"](operands, attrs)["e"]
    assert isinstance(q, Type)
    return product(q.dims[:-1]) * (q.dims[-1] + size) * 2 * sym("C")


@paged_attention.bytes
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """Of the cache, the ``C`` tokens of each sequence that are attended to."""
    q, cache, seqs = operands[0], operands[1], operands[2]
    assert isinstance(q, Type) and isinstance(cache, Type) and isinstance(seqs, Type)
    return q.nbytes * 2 + _stored(cache) * seqs.dims[1] * sym("C")


@kv_append.bytes
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """The new tokens, read and stored; the rest of the cache stays."""
    cache, k, v = operands[:3]
    assert isinstance(cache, Type) and isinstance(k, Type)
    v = v.nbytes if isinstance(v, Type) else 0
    return k.nbytes + v + _stored(cache) * k.dims[0]


def _stored(cache: Type) -> Dim:
    """Bytes of one token's keys and values."""
    assert isinstance(cache.elem, Paged)
    return divide(cache.elem.nbytes((1, *cache.dims[1:])), cache.elem.page)
