"""What attention ops share: which keys a token sees, and how scores become weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..seqs import PagedCache, Seqs

Part = tuple[Tensor, Tensor]
"""What is attended to [t, H, E], and the logarithm f32[t, H] of the sum of the weights."""


@dataclass(frozen=True)
class Scores:
    """What attention takes beside queries, keys and values; as in ``attention`` and ``partial_attention``."""

    scale: float
    sinks: Tensor | None = None
    slopes: Tensor | None = None
    index: Tensor | None = None
    bias: Tensor | None = None
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    block: int = 1
    stride: int = 1

    def since(self, position: int) -> int:
        """The first position that the token at ``position`` sees."""
        first = 0 if self.window is None else max(0, position - self.window + 1)
        return first if self.chunk is None else max(first, position // self.chunk * self.chunk)

    def of(self, a: int, b: int) -> Scores:
        """The same for the tokens ``a`` to ``b`` of the step alone."""
        index = self.index if self.index is None else self.index[a:b]
        bias = self.bias if self.bias is None else self.bias[a:b]
        sinks = self.sinks if self.sinks is None or self.sinks.dim() == 1 else self.sinks[a:b]
        return replace(self, sinks=sinks, index=index, bias=bias)

    def added(self, at: Tensor, key: Tensor) -> Tensor:
        """What ``bias`` adds to the scores of tokens at positions ``at`` [t] for keys [n]: f32[H, t, n]."""
        assert self.bias is not None
        near = self.bias.float().transpose(0, 1)
        back = at[:, None] - (key * self.stride + self.stride - 1)
        places = back.clamp(0, near.shape[2] - 1).expand(len(near), -1, -1)
        return near.gather(2, places).masked_fill(back >= near.shape[2], 0.0)

    def seen(self, at: Tensor, key: Tensor) -> Tensor:
        """Which of the keys, the ``key``-th [n] of a sequence, tokens at positions ``at`` [t] see.

        bool[t, n], or bool[KV, t, n] where each KV head has an index of its own.
        """
        at, position = at[:, None], (key * self.stride + self.stride - 1)[None]
        seen = position <= at
        if self.window is not None:
            seen = seen & (position > at - self.window)
        if self.chunk is not None:
            seen = seen & (position >= at // self.chunk * self.chunk)
        if self.index is not None:
            blocks = key // self.block
            chosen = (self.index[..., None] == blocks).any(-2)
            if self.index.dim() == 3:
                chosen = chosen.transpose(0, 1)
            seen = seen & (chosen | (blocks >= (at + 1) // self.block))
        return seen


def attend(q: Tensor, k: Tensor, v: Tensor, first: int, since: int, how: Scores) -> Part:
    """Of ``q`` [t, H, D] at positions ``first``.., to ``k`` and ``v`` [n, KV, D], keys ``since``.. of theirs.

    What is attended to [t, H, E], and the logarithm f32[t, H] of the sum of the weights, by which two such
    results are joined: -inf where nothing is seen. In f32.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("thd,shd->hts", q.float(), k.float()) * how.scale
    if how.softcap is not None:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    at = torch.arange(first, first + len(q), device=q.device)
    key = torch.arange(since, since + len(k), device=q.device)
    if how.slopes is not None:
        scores = scores + how.slopes.float()[:, None, None] * (key - at[:, None])
    if how.bias is not None:
        scores = scores + how.added(at, key)
    seen = how.seen(at, key)
    seen = seen if seen.dim() == 2 else seen.repeat_interleave(len(scores) // len(seen), 0)
    scores = scores.masked_fill(~seen, float("-inf"))
    if how.sinks is not None:
        sinks = how.sinks.float().expand(len(q), -1)
        scores = torch.cat([scores, sinks.T[..., None]], -1)
    total = torch.logsumexp(scores, -1, keepdim=True)
    p = torch.exp(scores - total).where(total > float("-inf"), 0.0)[..., : len(k)]
    return torch.einsum("hts,she->the", p, v.float()).to(q.dtype), total[..., 0].T


def over_tokens(q: Tensor, k: Tensor, v: Tensor, seqs: Seqs, how: Scores) -> Part:
    """Each sequence over its own tokens of this step, of every stride the last."""
    own = slice(how.stride - 1, None, how.stride)
    spans = seqs.spans()
    return _joined([attend(q[a:b], k[a:b][own], v[a:b][own], 0, 0, how.of(a, b)) for a, b in spans])


def over_pages(q: Tensor, cache: PagedCache, seqs: Seqs, how: Scores, values: int | None) -> Part:
    """Each sequence over all of its tokens in a cache; ``values`` as in ``paged_attention``."""
    parts: list[Part] = []
    for s, (a, b), first in seqs.steps():
        since = how.since(first)
        k, v = cache.read(seqs, s, since)
        v = v if values is None else k[..., :values]
        parts.append(attend(q[a:b], k, v, first, since, how.of(a, b)))
    return _joined(parts)


def _joined(parts: Sequence[Part]) -> Part:
    values, totals = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(totals)
