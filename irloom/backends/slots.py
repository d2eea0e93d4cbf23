"""Steps over slots: a sequence's keys and values lie in one slot of a linear cache, not in pages.

The caches of a layer are ``[slots, KV heads, length, head dim]``, so a slot's number is its place in the
batch of an attention. Rows stay packed, as everywhere in irloom: only attention and the update of a cache see
slots, and where their kernels take no packed rows, rows are padded there and nowhere else.

What is written for padding must not touch keys that somebody still reads. A slot gets its padding behind its
own keys, so a cache is as long as the longest sequence and the widest chunk together (``length``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from irloom.runtime.core import Batch, Ints

ROUND = 8
"""A step with a row for every slot is over a multiple of this many, so that few shapes serve all steps."""


@dataclass(frozen=True)
class SlotStep:
    """Some sequences of a batch, over the slots ``first`` to ``first + B - 1``. All arrays are i32.

    ``sequences`` are their numbers in the batch, in the order of their slots; rows are packed in this order,
    and ``rows`` says which row of logits is whose. ``tokens`` and ``positions`` [T], ``last`` [S] (the last
    row of each sequence), ``starts`` [B + 1] (where the rows of a slot begin). ``past`` [B] is where a slot's
    new keys are written, ``lengths`` [B] how many there are then; a slot that takes no part has a length of
    at least 1, and what is written for it lies behind its own keys. ``pad`` [B, N] is the row of token ``n``
    of a slot, 0 where it has none; ``unpad`` [T] is the place ``b * N + n`` of each row. ``context`` and
    ``tables`` are those of the batch, a row for each sequence.
    """

    sequences: tuple[int, ...]
    rows: tuple[int, ...]
    first: int
    tokens: Ints
    positions: Ints
    last: Ints
    starts: Ints
    past: Ints
    lengths: Ints
    pad: Ints
    unpad: Ints
    context: Ints
    tables: tuple[Ints, ...]

    @property
    def slots(self) -> int:
        """``B``: how many slots it is over."""
        return len(self.past)

    @property
    def width(self) -> int:
        """``N``: the most tokens that one slot brings; 1 where all decode."""
        return self.pad.shape[1]


def length(max_context: int, widest: int) -> int:
    """How long caches are, for sequences of ``max_context`` tokens and chunks of up to ``widest``."""
    return max_context + widest


class Slots:
    """How many keys each slot has: written by every step, read where a slot takes no part in one.

    ``pool`` is the number of the pool of keys among those of the engine. With ``filled``, a step in which all
    sequences decode has a row for every slot from the first on: there are few such shapes, so that graphs can
    be captured for them. No op may be run on its rows that changes more than keys at the rows' positions.
    Steps that are ``anchored`` begin at the first slot, for memory that is not aligned at others.
    """

    def __init__(self, slots: int, pool: int = 0, filled: bool = False, anchored: bool = False) -> None:
        self.lengths: Ints = np.zeros(slots, np.int32)
        self.pool, self.filled, self.anchored = pool, filled, anchored

    def steps(self, batch: Batch, packed: bool = False) -> list[SlotStep]:
        """A batch as steps: the sequences that decode, then those that bring more than one token.

        With ``packed``, for kernels that take packed queries, all sequences make one step.
        """
        new = np.diff(batch.starts)
        parts = [np.arange(len(new))] if packed else [np.flatnonzero(new == 1), np.flatnonzero(new > 1)]
        return [self._step(batch, part) for part in parts if len(part)]

    def _step(self, batch: Batch, sequences: NDArray[np.intp]) -> SlotStep:
        at = batch.tables[self.pool][sequences, 0]
        order = np.argsort(at)
        sequences, at = sequences[order], at[order]
        brings = np.diff(batch.starts)[sequences]
        tokens, positions = (
            _rows(x, batch.starts[sequences], brings) for x in (batch.tokens, batch.positions)
        )
        owners = np.arange(len(sequences))
        filled = self.filled and int(brings.max()) == 1
        first = 0 if filled or self.anchored else int(at[0])
        stop = self._rounded(int(at[-1]) + 1) if filled else int(at[-1]) + 1
        at = at - first
        past, new = self.lengths[first:stop].copy(), np.zeros(stop - first, np.int32)
        past[at], new[at] = batch.context[sequences] - brings, brings
        self.lengths[first:stop] = past + new
        if filled:
            tokens, positions = (_spread(x, at, len(new)) for x in (tokens, positions))
            owners, new = at, np.ones_like(new)
        starts, pad, unpad = _padding(new)
        return SlotStep(
            tuple(sequences.tolist()),
            tuple(owners.tolist()),
            first,
            tokens,
            positions,
            starts[1:][new > 0] - 1,
            starts,
            past,
            np.maximum(past + new, 1),
            pad,
            unpad,
            batch.context[sequences],
            tuple(t[sequences] for t in batch.tables),
        )

    def _rounded(self, slots: int) -> int:
        return min(-(-slots // ROUND) * ROUND, len(self.lengths))


def whole(batch: Batch) -> SlotStep:
    """A batch as one step where nothing lies in slots: each sequence stands in one of its own."""
    new = np.diff(batch.starts)
    starts, pad, unpad = _padding(new)
    each = tuple(range(len(new)))
    past, last = batch.context - new, starts[1:] - 1
    rows = (batch.tokens, batch.positions, last, starts, past, batch.context, pad, unpad)
    return SlotStep(each, each, 0, *rows, batch.context, batch.tables)


def _rows(x: Ints, starts: Ints, counts: Ints) -> Ints:
    """The entries ``starts[i]`` to ``starts[i] + counts[i] - 1`` of ``x``, for each ``i``."""
    before = np.cumsum(counts) - counts
    return x[np.arange(counts.sum()) + np.repeat(starts - before, counts)]


def _spread(x: Ints, at: NDArray[np.intp], count: int) -> Ints:
    """``x`` at the places ``at`` of ``count``; 0, which is a token and a position, at all others."""
    out = np.zeros(count, np.int32)
    out[at] = x
    return out


def _padding(new: Ints) -> tuple[Ints, Ints, Ints]:
    """For ``new`` [B] tokens of each slot: ``starts`` [B + 1], ``pad`` [B, N] and ``unpad`` [T]."""
    starts = np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
    real = np.arange(new.max()) < new[:, None]
    pad = np.zeros(real.shape, np.int32)
    pad[real] = np.arange(starts[-1])
    return starts, pad, np.flatnonzero(real).astype(np.int32)
