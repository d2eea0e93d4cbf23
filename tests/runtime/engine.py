"""A small engine that really computes from its paged cache, and the same model without any pages.

The model has one layer per pool. A layer's entry for a token hashes the token, its position and what the
layer before it read: the entries of that layer's window, through its page table. The logits hash what the
last layer read. So one token from a wrong or stale page changes everything after it; and a page is filled
with ``POISON`` when its first entry is written, so that nothing of an earlier owner is read by accident.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from irloom.ir.plan import Pool
from irloom.runtime.core import Batch, Sampled, SamplingRow
from irloom.runtime.sampler import sample

POISON = np.uint64(0xDEADBEEFDEADBEEF)
VOCAB = 48
Entries = NDArray[np.uint64]


def mix(value: int) -> int:
    """A good hash of 64 bits (splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def read(entries: Entries) -> int:
    """A hash of entries in their order."""
    weights = np.arange(1, 2 * len(entries) + 1, 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return mix(int(np.sum(entries * weights, dtype=np.uint64)))


def logits(hidden: int) -> torch.Tensor:
    """Scores [vocab] in (-3, 3), all different."""
    scores = [mix(hidden + token) / 2**64 for token in range(VOCAB)]
    return torch.tensor(scores) * 6 - 3


class HashEngine:
    """Obeys ``Engine``. ``fail_at`` raises in that step; ``batches`` are kept for tests to look at."""

    def __init__(self, pools: tuple[Pool, ...], max_tokens: int, max_seqs: int, max_context: int) -> None:
        self.vocab, self.pools = VOCAB, pools
        self.max_tokens, self.max_seqs, self.max_context = max_tokens, max_seqs, max_context
        self.caches = [np.full((pool.pages, pool.page), POISON) for pool in pools]
        self.batches: list[Batch] = []
        self.fail_at: dict[int, BaseException] = {}

    def step(self, batch: Batch) -> Sequence[Sampled | None]:
        self.batches.append(batch)
        if error := self.fail_at.pop(len(self.batches), None):
            raise error
        assert 0 < len(batch.tokens) <= self.max_tokens
        assert 0 < len(batch.context) <= self.max_seqs
        hidden: list[int] = []
        for s in range(len(batch.context)):
            last = 0
            for t in range(batch.starts[s], batch.starts[s + 1]):
                last = self._token(batch, s, int(batch.tokens[t]), int(batch.positions[t]))
            assert batch.positions[batch.starts[s + 1] - 1] == batch.context[s] - 1
            hidden.append(last)
        asked = [(h, row) for h, row in zip(hidden, batch.sampling, strict=True) if row is not None]
        chosen = iter(
            sample(torch.stack([logits(h) for h, _ in asked]), [row for _, row in asked]) if asked else []
        )
        return [None if row is None else next(chosen) for row in batch.sampling]

    def _token(self, batch: Batch, s: int, token: int, position: int) -> int:
        hidden = mix(token)
        for pool, cache, tables in zip(self.pools, self.caches, batch.tables, strict=True):
            page, offset = divmod(position, pool.page)
            assert tables[s, page] >= 0, f"no page for position {position} in {pool.name}"
            if offset == 0:
                cache[tables[s, page]] = POISON
            cache[tables[s, page], offset] = mix(hidden + position)
            first = 0 if pool.window is None else max(0, position - pool.window + 1)
            at = np.arange(first, position + 1)
            pages = tables[s, at // pool.page]
            assert (pages >= 0).all(), f"position {position} reads a page of {pool.name} that was given back"
            entries = cache[pages, at % pool.page]
            assert (entries != POISON).all(), f"position {position} reads a stale entry of {pool.name}"
            hidden = mix(hidden + read(entries))
        return hidden


def oracle(windows: Sequence[int | None], prompt: Sequence[int], steps: int, row: SamplingRow) -> list[int]:
    """What the model says after ``prompt``, computed from lists alone; ``row`` says how tokens are chosen."""
    layers: list[list[int]] = [[] for _ in windows]
    tokens, counts, todo = list(prompt), dict[int, int](), list(prompt)
    for made in range(steps):
        hidden = 0
        for token in todo:
            hidden = mix(token)
            for window, entries in zip(windows, layers, strict=True):
                entries.append(mix(hidden + len(entries)))
                reach = entries if window is None else entries[-window:]
                hidden = mix(hidden + read(np.array(reach, np.uint64)))
        one = SamplingRow(row.params, row.seed, made, (), np.unique(np.array(prompt, np.int32)), dict(counts))
        token = sample(logits(hidden).unsqueeze(0), [one])[0].token
        tokens.append(token)
        counts[token] = counts.get(token, 0) + 1
        todo = [token]
    return tokens[len(prompt) :]
