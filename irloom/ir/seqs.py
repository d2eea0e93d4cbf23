"""Reference values of the opaque types: how packed tokens belong to sequences, and caches in pages.

Tokens of all sequences in a step are packed back to back, with no padding. A sequence may bring a whole
prompt, a chunk of one, or one token: ``attention`` and ``paged_attention`` treat them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch

from .errors import IRError


@dataclass(frozen=True)
class Seqs:
    """How packed tokens belong to sequences.

    ``positions`` i32[T]; ``starts`` i32[S + 1], where each sequence's tokens begin; ``context`` i32[S],
    tokens in the cache when the step is done (this step's included); ``tables`` per cache window
    i32[S, pages], page ids.

    >>> Seqs.of([3, 2]).positions.tolist(), Seqs.of([3, 1], past=[0, 7]).positions.tolist()
    ([0, 1, 2, 0, 1], [0, 1, 2, 7])
    """

    positions: torch.Tensor
    starts: torch.Tensor
    context: torch.Tensor
    tables: dict[int | None, torch.Tensor] = field(default_factory=dict[int | None, torch.Tensor])

    @staticmethod
    def of(
        lengths: Sequence[int],
        past: Sequence[int] | None = None,
        tables: dict[int | None, torch.Tensor] | None = None,
    ) -> Seqs:
        """Sequences that bring ``lengths`` new tokens after ``past`` cached ones."""
        before = list(past) if past is not None else [0] * len(lengths)
        if not lengths or min(lengths) < 1 or len(before) != len(lengths):
            raise IRError(
                f"seqs: lengths {list(lengths)} after {before}",
                hint="each sequence brings at least one token",
            )
        positions = torch.cat([torch.arange(b, b + n) for n, b in zip(lengths, before, strict=True)])
        starts = torch.tensor([0, *accumulate(lengths)])
        context = torch.tensor([b + n for n, b in zip(lengths, before, strict=True)])
        return Seqs(positions.int(), starts.int(), context.int(), tables or {})

    @property
    def tokens(self) -> int:
        """Tokens in flight."""
        return len(self.positions)

    @property
    def count(self) -> int:
        """Sequences in flight."""
        return len(self.context)

    def spans(self) -> list[tuple[int, int]]:
        """The range of tokens of each sequence."""
        at = [int(x) for x in self.starts]
        return list(pairwise(at))

    def slots(self, window: int | None, page: int) -> torch.Tensor:
        """For each token i64[T], its place in the cache: page id * page + offset in the page."""
        table = self.table(window)
        owner = torch.repeat_interleave(self.starts.diff())
        at = self.positions.long()
        return table[owner, at // page].long() * page + at % page

    def table(self, window: int | None) -> torch.Tensor:
        """The page table i32[S, pages] of the caches with this window."""
        if window not in self.tables:
            raise IRError(
                f"seqs: no page table for caches of window {window}", hint=f"there are {list(self.tables)}"
            )
        return self.tables[window]

    def to(self, device: torch.device | str) -> Seqs:
        """The same on another device."""
        tables = {k: t.to(device) for k, t in self.tables.items()}
        return Seqs(self.positions.to(device), self.starts.to(device), self.context.to(device), tables)


@dataclass(frozen=True)
class PagedCache:
    """Keys and values ``[pages, page, kv heads, head dim]`` of one layer; ``window`` as in its element."""

    k: torch.Tensor
    v: torch.Tensor
    window: int | None = None

    @staticmethod
    def empty(
        pages: int, page: int, heads: int, dim: int, dtype: torch.dtype, window: int | None = None
    ) -> PagedCache:
        """A cache of zeros."""
        zeros = torch.zeros(pages, page, heads, dim, dtype=dtype)
        return PagedCache(zeros, zeros.clone(), window)

    @property
    def page(self) -> int:
        """Tokens a page holds."""
        return self.k.shape[1]

    def append(self, k: torch.Tensor, v: torch.Tensor, seqs: Seqs) -> PagedCache:
        """A cache that also holds ``k`` and ``v`` [T, kv heads, head dim] at the tokens' places."""
        at = seqs.slots(self.window, self.page)
        keys, values = self.k.clone(), self.v.clone()
        keys.view(-1, *keys.shape[2:])[at] = k.to(keys.dtype)
        values.view(-1, *values.shape[2:])[at] = v.to(values.dtype)
        return PagedCache(keys, values, self.window)

    def read(self, seqs: Seqs, s: int, since: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [n, kv heads, head dim] of sequence ``s`` from position ``since`` on."""
        at = torch.arange(since, int(seqs.context[s]), device=self.k.device)
        rows = seqs.table(self.window)[s, at // self.page].long() * self.page + at % self.page
        return self.k.view(-1, *self.k.shape[2:])[rows], self.v.view(-1, *self.v.shape[2:])[rows]
