"""Sampling where the logits are: all rows of a step at once, and one transfer of what was chosen.

The order of rules, the cuts and the draws are those of ``runtime.sampler``, from which the sums and the
random numbers come: on one device both choose the same tokens. What differs is that nothing here waits for
the device before the choice is made. What the host knows (parameters, random numbers, scores to change) goes
to the device in one copy, what was chosen comes back in one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from irloom.runtime.core import BROKEN, Sampled, SamplingRow
from irloom.runtime.sampler import nucleus_among, pick, uniforms

if TYPE_CHECKING:
    from irloom.runtime.request import SamplingParams

SORTED = 128
"""So many scores of a row are sorted. Where top-p leaves more, it has another go with eight times as many."""


def sample(
    logits: torch.Tensor, rows: Sequence[SamplingRow], at: Sequence[int] | None = None
) -> list[Sampled]:
    """Choose one token per row of ``logits`` [rows, vocab]: ``launch``, and wait for it."""
    return launch(logits, rows, at).take() if rows else []


def launch(
    logits: torch.Tensor, rows: Sequence[SamplingRow], at: Sequence[int] | None = None, size: int = SORTED
) -> Choice:
    """Queue the choice of one token per row of ``logits`` [rows, vocab] on their device.

    ``at`` gives the row of logits for each of ``rows``, where it is not its number. ``size`` is how many
    scores of a row are sorted for top-p. The logits may be overwritten once this returns only by what is
    queued behind it.
    """
    told = Told.of(rows, at, logits.shape[-1], logits.device)
    logits = logits[: len(rows)] if told.at is None else logits[told.at]
    scores = adjust(logits.float(), told)
    best, tokens = scores.max(-1)
    columns = [best.unsqueeze(1)]
    if told.draws is not None:
        drawn, enough = _draw(scores, told.draws, size)
        tokens = torch.where(told.draws.greedy, tokens, drawn)
        columns.append(enough.unsqueeze(1))
    if told.reported is not None:
        logprobs = logits.float().log_softmax(-1)
        top = logprobs.topk(told.reported)
        columns += [logprobs.gather(1, tokens.unsqueeze(1)), top.indices, top.values]
    table = torch.cat([c.double() for c in (tokens.unsqueeze(1), *columns)], 1)
    return Choice(logits, rows, size, told.draws is not None, told.reported or 0, *to_host(table))


@dataclass(frozen=True)
class Choice:
    """Tokens that are being chosen. ``table`` [rows, columns] is on the host once ``done`` has happened.

    Its columns are tokens, best scores, whether ``size`` scores were enough (where something is ``drawn``),
    and what is reported: the chosen log-probability, the ``top`` best tokens, and theirs.
    """

    logits: torch.Tensor
    rows: Sequence[SamplingRow]
    size: int
    drawn: bool
    top: int
    table: torch.Tensor
    done: torch.cuda.Event | None

    def take(self) -> list[Sampled]:
        """Wait, and what was chosen; ``BROKEN`` where a logit is NaN or none is finite."""
        if self.done is not None:
            self.done.synchronize()
        table = self.table.numpy()
        fine = np.isfinite(table[:, 1])
        reported = table[:, 2 + self.drawn :]
        tokens = np.where(fine, table[:, 0], BROKEN).astype(np.int64).tolist()
        out = [self._sampled(*x) for x in zip(self.rows, tokens, reported, strict=True)]
        short = np.flatnonzero(fine & (table[:, 2] == 0)).tolist() if self.drawn else []
        if short:
            again = launch(self.logits, [self.rows[i] for i in short], short, self.size * 8).take()
            for i, one in zip(short, again, strict=True):
                out[i] = one
        return out

    def _sampled(self, row: SamplingRow, token: int, reported: NDArray[np.float64]) -> Sampled:
        if row.params.logprobs is None or token == BROKEN:
            return Sampled(token)
        count = min(row.params.logprobs, self.top)
        ids, values = reported[1 : 1 + count], reported[1 + self.top : 1 + self.top + count]
        top = tuple(zip(ids.astype(np.int64).tolist(), values.tolist(), strict=True))
        return Sampled(token, float(reported[0]), top)


@dataclass(frozen=True)
class Edits:
    """Scores to change: ``scores[row[i], token[i]]`` by ``value[i]``."""

    row: torch.Tensor
    token: torch.Tensor
    value: torch.Tensor

    @property
    def at(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where, as an index."""
        return self.row, self.token


@dataclass(frozen=True)
class Draws:
    """How rows that are not greedy draw; all are [rows, 1], but ``greedy`` [rows].

    ``most`` is the largest ``top_k`` that cuts something. What no row asks for is None.
    """

    greedy: torch.Tensor
    temperature: torch.Tensor
    floor: torch.Tensor | None
    top_k: torch.Tensor
    most: int | None
    top_p: torch.Tensor | None
    uniform: torch.Tensor


@dataclass(frozen=True)
class Told:
    """What the host tells the device about the rows; what no row asks for is None.

    ``at`` [rows] says whose logits are whose, ``reported`` is the most log-probabilities that a row asks for.
    """

    at: torch.Tensor | None
    draws: Draws | None
    bias: Edits | None
    repetition: Edits | None
    minus: Edits | None
    banned: Edits | None
    reported: int | None

    @staticmethod
    def of(rows: Sequence[SamplingRow], at: Sequence[int] | None, vocab: int, device: torch.device) -> Told:
        """Everything in one copy to the device; none where there is nothing to tell."""
        params = [row.params for row in rows]
        drawn = not all(p.greedy for p in params)
        columns = [_numbers(p, vocab) for p in params] if drawn else []
        random = uniforms([row.seed for row in rows], [row.position for row in rows]) if drawn else ()
        edited = any(p.logit_bias or p.penalized for p in params) or any(row.banned for row in rows)
        edits = [_edits(rows, change) if edited else () for change in (_bias, _repetition, _minus, _bans)]
        plain = np.array(columns, np.float64).reshape(-1, 5)
        parts = [np.asarray(x, np.float64).ravel() for x in (at or (), plain.T, random, *edits)]
        flat = torch.from_numpy(np.concatenate(parts))
        if flat.numel() and device.type == "cuda":
            flat = flat.pin_memory().to(device, non_blocking=True)  # or the host would wait for the device
        where, numbers, uniform, *changes = flat.split([len(x) for x in parts])
        asked = [p.logprobs for p in params if p.logprobs is not None]
        return Told(
            where.long() if at is not None else None,
            _draws(plain, numbers.view(5, -1, 1), uniform.unsqueeze(1)) if drawn else None,
            *[_moved(x) for x in changes],
            reported=min(max(asked), vocab) if asked else None,
        )


def _draws(told: NDArray[np.float64], numbers: torch.Tensor, uniform: torch.Tensor) -> Draws:
    """From ``numbers`` [5, rows, 1], which are ``told`` [rows, 5] on the device."""
    greedy, temperature, floor, top_k, top_p = numbers
    limited = told[:, 3][told[:, 3] > 0]
    return Draws(
        greedy.squeeze(1).bool(),
        temperature.float(),
        floor.float() if np.isfinite(told[:, 2]).any() else None,
        top_k.long(),
        int(limited.max()) if len(limited) else None,
        top_p.float() if (told[:, 4] < 1).any() else None,
        uniform,
    )


def _numbers(params: SamplingParams, vocab: int) -> tuple[float, ...]:
    """Greedy, temperature, the logarithm of min-p, top-k where it cuts, top-p: of greedy rows, no cuts."""
    if params.greedy:
        return 1, 1, -math.inf, 0, 1
    floor = math.log(params.min_p) if params.min_p else -math.inf
    return 0, params.temperature, floor, params.top_k if 0 < params.top_k < vocab else 0, params.top_p


Changes = tuple[Sequence[int] | NDArray[Any], Sequence[float] | NDArray[Any]]
"""Tokens of a row, and a number for each."""


def _bias(row: SamplingRow) -> Changes:
    return list(row.params.logit_bias), list(row.params.logit_bias.values())


def _repetition(row: SamplingRow) -> Changes:
    """Each token in prompt or output, once or twice, with what divides or multiplies its score."""
    if row.params.repetition_penalty == 1:
        return (), ()
    prompt = np.array([], np.int32) if row.prompt is None else row.prompt
    seen = np.concatenate([prompt, np.array(list(row.counts), np.int32)])
    return seen, np.full(len(seen), row.params.repetition_penalty)


def _minus(row: SamplingRow) -> Changes:
    """What presence and frequency take off, rounded as scores are."""
    if not row.params.penalized:
        return (), ()
    counts = np.array(list(row.counts.values()), np.float32)
    presence, frequency = np.float32(row.params.presence_penalty), np.float32(row.params.frequency_penalty)
    return list(row.counts), presence + frequency * counts


def _bans(row: SamplingRow) -> Changes:
    return row.banned, np.full(len(row.banned), -math.inf)


def _edits(rows: Sequence[SamplingRow], change: Any) -> NDArray[np.float64]:
    """One kind of change to all rows, [3, changes]: row, token, number."""
    parts = [change(row) for row in rows]
    at = np.repeat(np.arange(len(rows)), [len(tokens) for tokens, _ in parts])
    return np.stack([at, *(np.concatenate([p[i] for p in parts]) for i in (0, 1))]).astype(np.float64)


def _moved(flat: torch.Tensor) -> Edits | None:
    if not len(flat):
        return None
    row, token, value = flat.view(3, -1)
    return Edits(row.long(), token.long(), value.float())


def adjust(scores: torch.Tensor, told: Told) -> torch.Tensor:
    """``scores`` with bias, penalties and bans; a copy where anything changes."""
    if not any((told.bias, told.repetition, told.minus, told.banned)):
        return scores
    scores = scores.clone()
    if (bias := told.bias) is not None:
        scores[bias.at] += bias.value
    if (seen := told.repetition) is not None:
        old = scores[seen.at]
        scores[seen.at] = torch.where(old > 0, old / seen.value, old * seen.value)
    if (minus := told.minus) is not None:
        scores[minus.at] -= minus.value
    if (banned := told.banned) is not None:
        scores[banned.at] = banned.value
    return scores


def _draw(scores: torch.Tensor, told: Draws, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row, and whether the sorted scores sufficed to say what top-p leaves."""
    scores = scores / told.temperature
    chances = scores.softmax(-1)
    least, enough = _least(scores, chances, told, min(size, scores.shape[-1]))
    if least is not None:
        chances = chances.masked_fill(scores < least, 0)
    return pick(chances, told.uniform).clamp_max(scores.shape[-1] - 1), enough  # past it: of NaN, see take


def _least(
    scores: torch.Tensor, chances: torch.Tensor, told: Draws, size: int
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The lowest score [rows, 1] that min-p, then top-k, then top-p leave in; None where nothing is cut."""
    enough = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    if told.floor is None and told.most is None and told.top_p is None:
        return None, enough
    least = torch.full_like(scores[:, :1], -math.inf)
    if told.floor is not None:
        least = scores.amax(-1, keepdim=True) + told.floor
    if told.most is not None:
        top = scores.topk(told.most).values.gather(1, (told.top_k - 1).clamp_min(0))
        least = torch.where(told.top_k > 0, least.maximum(top), least)
    if told.top_p is not None:
        cut, found = nucleus_among(scores, chances, least, told.top_p, size)
        least = torch.where(told.top_p < 1, cut, least)
        enough = found | (told.top_p >= 1).squeeze(1)
    return least, enough


def to_host(x: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """A copy on the host, and what says that it is there."""
    if not x.is_cuda:
        return x, None
    there = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    there.copy_(x, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return there, done
