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

from irloom.runtime.core import BROKEN, Batch, Sampled, SamplingRow
from irloom.runtime.request import SamplingParams


def sample_batch(logits: torch.Tensor, batch: Batch) -> list[Sampled | None]:
    """A token for each sequence of ``batch`` that asks for one; ``logits`` [S, vocab]."""
    asked = [i for i, row in enumerate(batch.sampling) if row is not None]
    rows = [row for row in batch.sampling if row is not None]
    out: list[Sampled | None] = [None] * len(batch.sampling)
    if rows:
        picked = logits if len(rows) == len(logits) else logits[asked]
        for i, sampled in zip(asked, sample(picked, rows), strict=True):
            out[i] = sampled
    return out


def sample(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[Sampled]:
    """Choose one token per row of ``logits`` [rows, vocab]; ``BROKEN`` where one is NaN or none is finite."""
    scores = adjust(logits.float(), rows)
    best, tokens = _best(scores)
    fine: list[bool] = np.isfinite(_array(best)).tolist()
    drawn = [i for i, row in enumerate(rows) if fine[i] and not row.params.greedy]
    if drawn:
        tokens[drawn] = draw(_rows(scores, drawn), [rows[i] for i in drawn])
    chosen = _array(tokens).astype(np.int64).tolist()
    asked = [i for i, row in enumerate(rows) if fine[i] and row.params.logprobs is not None]
    sampled = [Sampled(token if ok else BROKEN) for token, ok in zip(chosen, fine, strict=True)]
    for i, logprobs in zip(asked, logits[asked].float().log_softmax(-1) if asked else (), strict=True):
        top = logprobs.topk(min(rows[i].params.logprobs or 0, logprobs.numel()))
        indices, values = _array(top.indices).astype(np.int64).tolist(), _array(top.values).tolist()
        pairs = tuple(zip(indices, values, strict=True))
        sampled[i] = Sampled(chosen[i], float(logprobs[chosen[i]]), pairs)
    return sampled


def _best(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best score of each row, and a token that has it: on a CPU NumPy finds it ten times as fast."""
    if scores.device.type != "cpu":
        best, tokens = scores.max(dim=-1)
        return best, tokens
    tokens = torch.as_tensor(scores.numpy().argmax(-1))
    return scores.gather(1, tokens.unsqueeze(1)).squeeze(1), tokens


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
    chances = scores.softmax(-1)
    least = cut(scores, chances, [row.params for row in rows])
    if least is not None:
        chances.masked_fill_(scores < least, 0)
    uniform = uniforms([row.seed for row in rows], [row.position for row in rows])
    return pick(chances, torch.as_tensor(uniform, device=scores.device).unsqueeze(1))


def cut(scores: torch.Tensor, chances: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor | None:
    """The lowest score [rows, 1] that min-p, then top-k, then top-p leave in; None where nothing is cut."""
    vocab = scores.shape[-1]
    limited = [i for i, one in enumerate(params) if 0 < one.top_k < vocab]
    nuclear = [i for i, one in enumerate(params) if one.top_p < 1]
    if not limited and not nuclear and not any(one.min_p for one in params):
        return None
    floor = [math.log(one.min_p) if one.min_p else -math.inf for one in params]
    least = scores.amax(-1, keepdim=True) + _column(floor, scores)
    if limited:
        k = torch.tensor([params[i].top_k for i in limited], device=scores.device).unsqueeze(1)
        top = _rows(scores, limited).topk(int(k.max())).values
        least[limited] = least[limited].maximum(top.gather(1, k - 1))
    if nuclear:
        share = _column([params[i].top_p for i in nuclear], scores)
        least[nuclear] = nucleus(_rows(scores, nuclear), _rows(chances, nuclear), least[nuclear], share)
    return least


def nucleus(
    scores: torch.Tensor, chances: torch.Tensor, least: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """The lowest score [rows, 1] of the fewest tokens that have ``share`` of the chances from ``least`` up.

    Sorting a whole vocabulary is the dearest part of sampling: the best hundred mostly hold enough.
    """
    size = min(scores.shape[-1], 128)
    while True:
        found, enough = nucleus_among(scores, chances, least, share, size)
        if bool(enough.all()):
            return found
        size = min(scores.shape[-1], size * 8)


def nucleus_among(
    scores: torch.Tensor, chances: torch.Tensor, least: torch.Tensor, share: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """``nucleus`` where it is among the best ``size`` scores, and for each row [rows] whether it is."""
    goal = share * chances.masked_fill(scores < least, 0).sum(-1, keepdim=True, dtype=torch.float64)
    top, at = scores.topk(size)
    mass = chances.gather(1, at).masked_fill(top < least, 0).double().cumsum(-1)
    enough = (mass[:, -1] >= goal[:, 0]) | (top[:, -1] < least[:, 0])
    count = (mass < goal).sum(-1, keepdim=True).clamp_max(size - 1)
    return least.maximum(top.gather(1, count)), enough | (size == scores.shape[-1])


def pick(chances: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The token of each row where the running sum of ``chances`` [rows, vocab] passes ``uniform`` [rows, 1].

    First the block of tokens, then the token in it: a running sum in f64 over a whole vocabulary is slow.
    """
    width = 512
    whole = torch.constant_pad_nd(chances, (0, -chances.shape[-1] % width))
    blocks = whole.view(len(chances), -1, width)
    sums = blocks.sum(-1, dtype=torch.float64)
    upto = sums.cumsum(-1)
    target = uniform * upto[:, -1:]
    block = torch.searchsorted(upto, target, right=True).clamp_max(upto.shape[-1] - 1)  # past it: of NaN
    inside = blocks.gather(1, block.unsqueeze(2).expand(-1, 1, width)).squeeze(1).double().cumsum(-1)
    # the two sums differ in their last bits: stay where the block has chances
    rest = (target - (upto - sums).gather(1, block)).clamp_min(0).minimum(inside[:, -1:] * (1 - 1e-12))
    return (block * width + torch.searchsorted(inside, rest, right=True)).squeeze(1)


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


def _rows(tensor: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return tensor if len(rows) == len(tensor) else tensor[rows]


def _array(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.cpu().double().numpy()


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
