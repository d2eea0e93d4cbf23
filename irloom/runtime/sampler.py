"""From logits to tokens, in torch on any device; every row on its own, so a batch never changes a row.

Order: bias, repetition, presence and frequency penalties, banned tokens; then the best token (greedy), or
temperature, min-p, top-k, top-p and one draw. Cuts are made at a *score*: equal scores stay or go together,
so no result hangs on how a sort breaks ties.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from irloom.ir.errors import IrloomError
from irloom.runtime.core import Sampled, SamplingRow


def sample(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[Sampled]:
    """Choose one token per row of ``logits`` [rows, vocab].

    Logits that are NaN, or a row without one finite score, are an ``IrloomError``.
    """
    scores = adjust(logits.float(), rows)
    best, tokens = scores.max(dim=-1)
    if not bool(best.isfinite().all()):
        row = int(best.isfinite().logical_not().nonzero()[0])
        raise IrloomError(f"sampler: the best score of row {row} is {float(best[row])}")
    drawn = [i for i, row in enumerate(rows) if not row.params.greedy]
    if drawn:
        tokens[drawn] = draw(scores[drawn], [rows[i] for i in drawn])
    chosen = _array(tokens).astype(np.int64).tolist()
    asked = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
    sampled = [Sampled(token) for token in chosen]
    for i, logprobs in zip(asked, logits[asked].float().log_softmax(-1) if asked else (), strict=True):
        top = logprobs.topk(min(rows[i].params.logprobs or 0, logprobs.numel()))
        indices, values = _array(top.indices).astype(np.int64).tolist(), _array(top.values).tolist()
        pairs = tuple(zip(indices, values, strict=True))
        sampled[i] = Sampled(chosen[i], float(logprobs[chosen[i]]), pairs)
    return sampled


def adjust(scores: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """``scores`` with bias, penalties and bans; a copy where anything changes."""
    if not any(row.params.logit_bias or row.params.penalized or row.banned for row in rows):
        return scores
    scores = scores.clone()
    for score, row in zip(scores, rows, strict=True):
        if row.params.logit_bias:
            ids = torch.tensor(list(row.params.logit_bias), device=score.device)
            score[ids] += torch.tensor(list(row.params.logit_bias.values()), device=score.device)
        if row.params.penalized:
            penalize(score, row)
        if row.banned:
            score[torch.tensor(row.banned, device=score.device)] = -math.inf
    return scores


def penalize(score: torch.Tensor, row: SamplingRow) -> None:
    """In place. Repetition divides positive and multiplies negative scores of tokens in prompt or output."""
    params = row.params
    output = torch.tensor(list(row.counts), dtype=torch.long, device=score.device)
    if params.repetition_penalty != 1:
        seen = output
        if row.prompt is not None:
            seen = torch.cat([torch.as_tensor(row.prompt, device=score.device).long(), output])
        old = score[seen]
        score[seen] = torch.where(old > 0, old / params.repetition_penalty, old * params.repetition_penalty)
    counts = torch.tensor(list(row.counts.values()), dtype=score.dtype, device=score.device)
    score[output] -= params.presence_penalty + params.frequency_penalty * counts


def draw(scores: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """One token per row with probability softmax(scores / temperature) over what the cuts leave."""
    scores = scores / _column([row.params.temperature for row in rows], scores)
    truncate(scores, rows)
    total = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    uniform = uniforms([row.seed for row in rows], [row.position for row in rows])
    target = torch.as_tensor(uniform, device=scores.device).unsqueeze(1) * total[:, -1:]
    return torch.searchsorted(total, target, right=True).squeeze(1)


def truncate(scores: torch.Tensor, rows: Sequence[SamplingRow]) -> None:
    """In place: -inf for what min-p, then top-k, then top-p leave out."""
    vocab = scores.shape[-1]
    if cut := [i for i, row in enumerate(rows) if row.params.min_p > 0]:
        least = _column([math.log(rows[i].params.min_p) for i in cut], scores)
        _cut(scores, cut, scores[cut].amax(-1, keepdim=True) + least)
    if cut := [i for i, row in enumerate(rows) if 0 < row.params.top_k < vocab]:
        k = torch.tensor([rows[i].params.top_k for i in cut], device=scores.device)
        top = scores[cut].topk(int(k.max())).values
        _cut(scores, cut, top.gather(1, k.unsqueeze(1) - 1))
    if cut := [i for i, row in enumerate(rows) if row.params.top_p < 1]:
        _cut(scores, cut, nucleus(scores[cut], _column([rows[i].params.top_p for i in cut], scores)))


def nucleus(scores: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """The lowest score [rows, 1] among the fewest tokens whose probabilities sum to at least ``p`` [rows, 1].

    Sorting a whole vocabulary is the dearest part of sampling: the best thousand mostly hold enough.
    """
    vocab = scores.shape[-1]
    norm = scores.logsumexp(-1, keepdim=True)
    size = min(vocab, 1024)
    while True:
        top = scores.topk(size).values
        mass = (top - norm).exp().cumsum(-1, dtype=torch.float64)
        if size == vocab or bool((mass[:, -1:] >= p).all()):
            count = (mass < p).sum(-1, keepdim=True).clamp_max(size - 1)
            return top.gather(1, count)
        size = min(vocab, size * 16)


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in (0, 1) per (seed, position): 48 bits of Philox with counter position and key seed."""
    counter = np.zeros((len(seeds), 4), np.uint64)
    counter[:, 0] = positions
    key = np.array([seed % 2**64 for seed in seeds], np.uint64)
    words = philox(counter, np.stack([key & np.uint64(0xFFFFFFFF), key >> np.uint64(32)], axis=1))
    bits = (words[:, 0] << np.uint64(16)) | (words[:, 1] >> np.uint64(16))
    return (bits.astype(np.float64) + 0.5) / 2.0**48


def philox(counter: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Philox4x32-10 of ``counter`` [n, 4] and ``key`` [n, 2], 32-bit words in u64.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    a, b, c, d = counter.T
    k0, k1 = key.T
    for _ in range(10):
        ab, cd = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (cd >> shift) ^ b ^ k0, cd & low, (ab >> shift) ^ d ^ k1, ab & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack([a, b, c, d], axis=1)


def _cut(scores: torch.Tensor, rows: list[int], least: torch.Tensor) -> None:
    kept = scores[rows]
    scores[rows] = kept.masked_fill(kept < least, -math.inf)


def _array(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.cpu().double().numpy()


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
