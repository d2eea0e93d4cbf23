"""Reference values of the opaque types: how packed tokens belong to sequences, and caches in pages.

Tokens of all sequences in a step are packed back to back, with no padding. A sequence may bring a whole
prompt, a chunk of one, or one token: ``attention`` and ``paged_attention`` treat them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

import torch

from .errors import IRError


@dataclass(frozen=True)
class Seqs:
    """How packed tokens belong to sequences.

    ``positions`` i32[T]; ``starts`` i32[S + 1], where each sequence's tokens begin; ``context`` i32[S],
    tokens in the cache when the step is done (this step's included); ``tables`` per pool i32[S, pages]: page
    ids, or for a pool of states slots, entry ``i`` being the state in the tokens from ``i * every`` on.

    >>> Seqs.of([3, 2]).positions.tolist(), Seqs.of([3, 1], past=[0, 7]).positions.tolist()
    ([0, 1, 2, 0, 1], [0, 1, 2, 7])
    """

    positions: torch.Tensor
    starts: torch.Tensor
    context: torch.Tensor
    tables: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    @staticmethod
    def of(
        lengths: Sequence[int],
        past: Sequence[int] | None = None,
        tables: dict[str, torch.Tensor] | None = None,
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
        at = [int(x) for x in self.starts.cpu()]  # one transfer
        return list(pairwise(at))

    def steps(self) -> list[tuple[int, tuple[int, int], int]]:
        """Each sequence: its number, the range of its tokens, and the position of the first of these."""
        context = [int(x) for x in self.context.cpu()]
        return [(s, (a, b), context[s] - (b - a)) for s, (a, b) in enumerate(self.spans())]

    def slots(self, pool: str, page: int) -> torch.Tensor:
        """For each token i64[T], its place in the cache: page id * page + offset in the page."""
        table = self.table(pool)
        owner = torch.repeat_interleave(self.starts.diff())
        at = self.positions.long()
        return table[owner, at // page].long() * page + at % page

    def table(self, pool: str) -> torch.Tensor:
        """The page table i32[S, pages] of the caches of this pool."""
        if pool not in self.tables:
            raise IRError(f"seqs: no page table for pool {pool!r}", hint=f"there are {list(self.tables)}")
        return self.tables[pool]

    def to(self, device: torch.device | str) -> Seqs:
        """The same on another device."""
        tables = {k: t.to(device) for k, t in self.tables.items()}
        return Seqs(self.positions.to(device), self.starts.to(device), self.context.to(device), tables)


@dataclass(frozen=True)
class PagedCache:
    """Keys ``[pages, page, kv heads, head dim]`` and values of one layer, and the pool that pages come from.

    Values have a last dim of their own, 0 where only keys are kept; of every ``stride`` tokens the last is
    kept. One that is renewed ``in_place`` writes into its own tensors: nothing may read it as it was before.
    They may lie in memory in any order of dims.
    """

    k: torch.Tensor
    v: torch.Tensor
    pool: str = "full"
    in_place: bool = False
    stride: int = 1

    @staticmethod
    def empty(
        pages: int,
        page: int,
        heads: int,
        dim: int,
        dtype: torch.dtype,
        pool: str = "full",
        values: int | None = None,
        stride: int = 1,
    ) -> PagedCache:
        """A cache of zeros; ``values`` are the features of a value, those of a key when absent."""
        k, v = (
            torch.zeros(pages, page // stride, heads, d, dtype=dtype)
            for d in (dim, dim if values is None else values)
        )
        return PagedCache(k, v, pool, stride=stride)

    @property
    def page(self) -> int:
        """Tokens of a page."""
        return self.k.shape[1] * self.stride

    def append(self, k: torch.Tensor, v: torch.Tensor | None, seqs: Seqs) -> PagedCache:
        """A cache that also holds ``k`` and ``v`` [T, kv heads, head dim] at the tokens' places."""
        at = seqs.slots(self.pool, self.page) // self.stride
        if self.stride > 1:
            last = (seqs.positions + 1) % self.stride == 0
            at, k, v = at[last], k[last], None if v is None else v[last]
        keys, values = (self.k, self.v) if self.in_place else (self.k.clone(), self.v.clone())
        place = at // keys.shape[1], at % keys.shape[1]
        _bytes(keys)[place] = _bytes(_fitted(k, keys.dtype))
        if v is not None:
            _bytes(values)[place] = _bytes(_fitted(v, values.dtype))
        return replace(self, k=keys, v=values)

    def read(self, seqs: Seqs, s: int, since: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [n, kv heads, head dim] of sequence ``s`` from its key ``since`` on.

        Those of eight bits come in f32: nothing is computed in them.
        """
        at = torch.arange(since, int(seqs.context[s]) // self.stride, device=self.k.device)
        entries = self.k.shape[1]
        place = seqs.table(self.pool)[s, at // entries].long(), at % entries
        k, v = (_bytes(t)[place].view(t.dtype) for t in (self.k, self.v))
        return (k.float(), v.float()) if k.dtype.itemsize == 1 else (k, v)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """Floats of eight bits as what torch moves by index."""
    return x.view(torch.uint8) if x.dtype.itemsize == 1 else x


def _fitted(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x`` as a cache of ``dtype`` keeps it: beyond what eight bits reach, the last that they do."""
    if dtype.itemsize == 1:
        x = x.float().clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    return x.to(dtype)


@dataclass(frozen=True)
class StateCache:
    """The states ``[slots, ...]`` of one layer: a slot holds what a sequence's tokens so far have come to.

    ``in_place`` as for ``PagedCache``.
    """

    states: torch.Tensor
    every: int
    pool: str = "state"
    in_place: bool = False

    @staticmethod
    def empty(slots: int, dims: Sequence[int], dtype: torch.dtype, every: int) -> StateCache:
        """States of zeros."""
        return StateCache(torch.zeros(slots, *dims, dtype=dtype), every)

    def read(self, seqs: Seqs, s: int) -> torch.Tensor:
        """The state of sequence ``s`` before this step; zeros where this step brings its first token."""
        first = int(seqs.positions[seqs.starts[s]])
        if not first:
            return torch.zeros_like(self.states[0])
        return self.states[int(seqs.table(self.pool)[s, (first - 1) // self.every])]

    def written(self, seqs: Seqs, states: Sequence[torch.Tensor]) -> StateCache:
        """The cache that holds each sequence's state after this step."""
        kept = self.states if self.in_place else self.states.clone()
        for s, state in enumerate(states):
            kept[int(seqs.table(self.pool)[s, (int(seqs.context[s]) - 1) // self.every])] = state.to(
                kept.dtype
            )
        return replace(self, states=kept)
