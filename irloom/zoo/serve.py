"""Serve known token sequences on an engine as the runtime would, and compare every step.

The scheduler cuts prompts into chunks, mixes them with decodes, and lets a late request start from a prefix
that an earlier one has left. Tokens are given, not sampled, so a difference stays where it arises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np
import torch

from irloom.runtime.batch import build
from irloom.runtime.core import Batch, Engine
from irloom.runtime.pages import Pages, Prefix
from irloom.runtime.request import FinishReason, Request, SamplingParams
from irloom.runtime.scheduler import Scheduler


class Stepped(Engine, Protocol):
    """An engine whose logits can be seen."""

    def logits(self, batch: Batch) -> torch.Tensor:
        """The logits [S, vocab] of each sequence's last token of the step."""
        ...


@dataclass(frozen=True)
class Script:
    """A sequence to serve: its tokens, how many are the prompt, and the logits [T, V] to expect of it.

    It ``arrives`` after so many steps; of two a lower ``priority`` goes first, even if it arrives later.
    """

    tokens: torch.Tensor
    prompt: int
    expected: torch.Tensor
    arrives: int = 0
    priority: int = 0


@dataclass(frozen=True)
class Served:
    """The largest difference relative to the largest logit, and where it was.

    ``rms`` is the root mean square of all differences as a share of that of the logits: where a model makes
    much of a rounding, the largest one may be anything, and this hardly moves. ``cached`` counts tokens that
    were hits of the prefix cache, ``preemptions`` how often a sequence lost its pages and was resumed.
    """

    error: float
    where: str
    rms: float
    cached: int
    preemptions: int


@dataclass(frozen=True)
class _Row:
    """One row of logits beside those to expect: as ``Served``, and what the mean is of."""

    error: float
    where: str
    off: float
    scale: float


def serve(engine: Stepped, scripts: Sequence[Script], late: Sequence[Script] = ()) -> Served:
    """Serve ``scripts`` together, then ``late`` ones, whose prompts may have been seen before."""
    pages = Pages(engine.pools, min(engine.max_seqs, engine.max_tokens), engine.max_context)
    scheduler = Scheduler(pages, engine.max_tokens)
    rows, cached = list[_Row](), 0
    for group in (scripts, late):
        requests = {_request(i, s, pages): s for i, s in enumerate(group)}
        for step in count():
            for request in (r for r, s in requests.items() if s.arrives == step):
                scheduler.add(request)
            chunks = scheduler.schedule()
            scheduler.check()
            if not len(chunks) and all(s.arrives <= step for s in group):
                break
            if not len(chunks):
                continue
            logits = engine.logits(build(chunks, pages, scheduler.sequences))
            scheduler.complete(chunks)
            for i, request in enumerate(chunks.requests):
                rows.append(_row(logits[i], request, requests[request], int(chunks.counts[i])))
                if chunks.samples[i]:
                    _go_on(scheduler, request, requests[request])
        cached += sum(request.cached for request in requests)
    worst = max(rows, key=lambda row: row.error)
    off = _share(sum(row.off for row in rows), sum(row.scale for row in rows))
    return Served(worst.error, worst.where, off, cached, scheduler.preemptions)


def _request(number: int, script: Script, pages: Pages) -> Request:
    tokens = script.tokens.numpy().astype(np.int32)
    return Request(
        str(number),
        tokens,
        script.prompt,
        len(tokens) + 1,
        SamplingParams(),
        seed=0,
        stop_ids=frozenset(),
        prefix=Prefix(tokens, pages.unit),
        known=script.prompt,
        priority=script.priority,
    )


def _row(found: torch.Tensor, request: Request, script: Script, count: int) -> _Row:
    assert request.table is not None
    at = request.table.stored - 1
    expected = script.expected[at]
    gap = found.float().to(expected.device) - expected
    where = f"sequence {request.id}, position {at}, a step of {count} of its tokens"
    return _Row(relative(found, expected, script.expected), where, _squares(gap), _squares(expected))


def _go_on(scheduler: Scheduler, request: Request, script: Script) -> None:
    """Give a request its next token, as all it has are stored; the last one ends it."""
    assert request.table is not None
    stored = request.table.stored
    if stored == len(script.tokens):
        scheduler.finish(request, FinishReason.LENGTH)
    else:
        scheduler.sequences.append(np.array([request.table.slot]), script.tokens[[stored]].numpy())


def relative(found: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor) -> float:
    """The largest difference as a share of the largest entry of ``scale`` (1 at least); NaN is infinite."""
    gap = (found.float().to(expected.device) - expected).abs().max().item()
    return gap / max(1.0, scale.abs().max().item()) if gap == gap else float("inf")


def rms(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The root mean square of the differences as a share of that of ``expected``.

    NaN where there is one; infinite where all that is expected is 0.
    """
    return _share(_squares(found - expected), _squares(expected))


def _share(off: float, scale: float) -> float:
    return math.sqrt(off / scale) if scale else math.inf


def _squares(x: torch.Tensor) -> float:
    return x.double().square().sum().item()
