"""A small engine that really computes from its paged cache, and the same model without any pages.

The model has one layer per pool. A layer's entry for a token hashes the token, its position and what the
layer before it read: the entries of that layer's window, through its page table. The logits hash what the
last layer read. So one token from a wrong or stale page changes everything after it; and a page is filled
with ``POISON`` when its first entry is written, so that nothing of an earlier owner is read by accident.

The layer of a pool of states is a chain of hashes instead: a step takes up the link in one slot of the
sequence and leaves the last of its own in another. A slot that was not written where it should have been
holds ``POISON`` or somebody else's link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from irloom.ir.plan import Pool
from irloom.runtime.core import BROKEN, Batch, Chosen, Sampled, SamplingRow
from irloom.runtime.flight import chosen
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
    """Obeys ``Engine``. ``batches`` are kept for tests to look at.

    ``fail_at`` raises in that step, which leaves noise in the pages; ``broken`` are tokens after which the
    logits are NaN.
    """

    def __init__(self, pools: tuple[Pool, ...], max_tokens: int, max_seqs: int, max_context: int) -> None:
        self.vocab, self.pools = VOCAB, pools
        self.max_tokens, self.max_seqs, self.max_context = max_tokens, max_seqs, max_context
        self.caches = [np.full((pool.pages, pool.page), POISON) for pool in pools]
        self.batches: list[Batch] = []
        self.fail_at: dict[int, BaseException] = {}
        self.broken = frozenset[int]()
        self.noise = 0

    def step(self, batch: Batch) -> Sequence[Sampled | None]:
        self.batches.append(batch)
        error = self.fail_at.pop(len(self.batches), None)
        self.noise = 0 if error is None else 1
        sampled = self.run(batch)
        if error:
            raise error
        return sampled

    def spoil(self, pages: Sequence[Sequence[int]]) -> None:
        """These pages of each pool are blank."""
        for cache, blank in zip(self.caches, pages, strict=True):
            cache[blank] = POISON

    def run(self, batch: Batch) -> Sequence[Sampled | None]:
        assert 0 < len(batch.tokens) <= self.max_tokens
        assert 0 < len(batch.context) <= self.max_seqs
        hidden: list[int] = []
        for s in range(len(batch.context)):
            span = slice(batch.starts[s], batch.starts[s + 1])
            tokens, positions = batch.tokens[span].tolist(), batch.positions[span].tolist()
            assert positions == list(range(positions[0], batch.context[s]))
            states, last = self._take_up(batch, s, positions[0]), 0
            for token, position in zip(tokens, positions, strict=True):
                last = self._token(batch, s, token, position, states)
            self._leave(batch, s, positions[0], states)
            hidden.append(last)
        asked = [(h, row) for h, row in zip(hidden, batch.sampling, strict=True) if row is not None]
        made = iter(
            sample(torch.stack([logits(h) for h, _ in asked]), [row for _, row in asked]) if asked else []
        )
        expanded = [None if row is None else next(made) for row in batch.sampling]
        ends = batch.tokens[batch.starts[1:] - 1].tolist()
        return [
            None if row is None else Sampled(BROKEN) if end in self.broken else one
            for row, end, one in zip(batch.sampling, ends, expanded, strict=True)
        ]

    def _take_up(self, batch: Batch, s: int, start: int) -> list[int]:
        """Each pool's link before the token at ``start``: 0 for the first token, and where there is none."""
        states = [0] * len(self.pools)
        for i, pool in enumerate(self.pools):
            if pool.cut and start:
                slot = batch.tables[i][s, (start - 1) // pool.page]
                assert slot >= 0, f"position {start} goes on from a slot of {pool.name} that was given back"
                states[i] = int(self.caches[i][slot, 0])
                assert states[i] != POISON, f"position {start} goes on from a stale slot of {pool.name}"
        return states

    def _leave(self, batch: Batch, s: int, start: int, states: list[int]) -> None:
        """Each pool's last link goes to the slot of the last token."""
        end = int(batch.context[s])
        for i, pool in enumerate(self.pools):
            if pool.cut:
                assert start // pool.page == (end - 1) // pool.page, f"{pool.name}: {start} to {end}"
                slot = batch.tables[i][s, (end - 1) // pool.page]
                assert slot >= 0, f"no slot for position {end - 1} in {pool.name}"
                self.caches[i][slot, 0] = states[i]

    def _token(self, batch: Batch, s: int, token: int, position: int, states: list[int]) -> int:
        hidden = mix(token + self.noise)
        for i, (pool, cache, tables) in enumerate(zip(self.pools, self.caches, batch.tables, strict=True)):
            if pool.cut:
                states[i] = mix(states[i] + hidden)
                hidden = mix(hidden + states[i])
                continue
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


class LateEngine(HashEngine):
    """Obeys ``Overlapped``, and never runs anything before it must: when a later step's tokens are taken."""

    def __init__(self, pools: tuple[Pool, ...], max_tokens: int, max_seqs: int, max_context: int) -> None:
        super().__init__(pools, max_tokens, max_seqs, max_context)
        self.queue: deque[Callable[[], None]] = deque()
        self.submitted, self.refuse_at = 0, dict[int, BaseException]()
        self.last = Chosen(np.zeros(0, np.int32))
        self.asked: Sequence[bool] = ()

    def submit(self, batch: Batch) -> Late:
        if error := self.refuse_at.pop(self.submitted + 1, None):
            raise error
        self.submitted += 1
        check_draws(batch)
        late = Late(self, batch)
        self.queue.append(late.run)
        return late

    def spoil(self, pages: Sequence[Sequence[int]]) -> None:
        kept = [list(blank) for blank in pages]
        self.queue.append(lambda: HashEngine.spoil(self, kept))

    def ready(self, batch: Batch) -> Batch:
        """The batch with the tokens that were not known when it was made."""
        late = batch.late >= 0
        assert all(self.asked[row] for row in batch.late[late]), "a token that nobody sampled"
        tokens = batch.tokens.copy()
        tokens[late] = np.maximum(self.last.tokens[batch.late[late]], 0)
        return replace(batch, tokens=tokens)


class Late:
    """A step of a ``LateEngine``."""

    def __init__(self, engine: LateEngine, batch: Batch) -> None:
        self.engine, self.batch = engine, batch
        self.chosen: Chosen | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        engine, asked = self.engine, [row is not None for row in self.batch.sampling]
        try:
            self.chosen = engine.last = chosen(engine.step(engine.ready(self.batch)))
        except AssertionError:
            raise
        except BaseException as error:
            self.error, engine.last = error, Chosen(np.zeros(len(asked), np.int32))
        engine.asked = asked

    def take(self) -> Chosen:
        while self.chosen is None and self.error is None:
            self.engine.queue.popleft()()
        if self.error is not None:
            raise self.error
        assert self.chosen is not None
        return self.chosen


def check_draws(batch: Batch) -> None:
    """The arrays say what the rows say."""
    for s, (row, draw) in enumerate(zip(batch.sampling, batch.draws, strict=True)):
        assert (row is not None) == draw["asked"]
        if row is None:
            assert s not in batch.rare
            continue
        params = row.params
        assert (draw["seed"], draw["position"]) == (row.seed % 2**64, row.position)
        assert draw["temperature"] == (0 if params.greedy else np.float32(params.temperature))
        assert (draw["top_p"], draw["top_k"]) == (np.float32(params.top_p), params.top_k)
        assert draw["floor"] == np.float32(np.log(params.min_p) if params.min_p else -np.inf)
        rare = params.penalized or params.logit_bias or row.banned or params.logprobs is not None
        assert (s in batch.rare) == bool(rare)


def oracle(pools: Sequence[Pool], prompt: Sequence[int], steps: int, row: SamplingRow) -> list[int]:
    """What the model says after ``prompt``, computed from lists alone; ``row`` says how tokens are chosen.

    Its ``banned`` tokens are those that may not come before ``min_tokens``.
    A state is the one entry its layer keeps.
    """
    layers: list[list[int]] = [[0] if pool.cut else [] for pool in pools]
    tokens, counts, todo = list(prompt), dict[int, int](), list(prompt)
    for made in range(steps):
        hidden = 0
        for token in todo:
            hidden = mix(token)
            for pool, entries in zip(pools, layers, strict=True):
                if pool.cut:
                    entries[0] = mix(entries[0] + hidden)
                    hidden = mix(hidden + entries[0])
                    continue
                entries.append(mix(hidden + len(entries)))
                reach = entries if pool.window is None else entries[-pool.window :]
                hidden = mix(hidden + read(np.array(reach, np.uint64)))
        banned = row.banned if made < row.params.min_tokens else ()
        seen = np.unique(np.array(prompt, np.int32))
        one = SamplingRow(row.params, row.seed, made, banned, seen, dict(counts))
        token = sample(logits(hidden).unsqueeze(0), [one])[0].token
        tokens.append(token)
        counts[token] = counts.get(token, 0) + 1
        todo = [token]
    return tokens[len(prompt) :]
