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


Shape = tuple[int, int]
"""The most slots of a step, and the most tokens of one of them."""


def shapes(slots: int, tokens: int) -> tuple[Shape, ...]:
    """What steps over chunks may be like: few slots with many tokens, to all slots with few.

    A kernel that pads plans for its largest step, and no step has more than ``tokens`` rows: so none of these
    is larger than that twice.

    >>> shapes(64, 512)
    ((2, 512), (16, 64), (64, 16))
    """
    made, most = list[Shape](), 2
    while not made or made[-1][0] < slots:
        made.append((min(most, slots), max(1, min(tokens, 2 * tokens // min(most, slots)))))
        most *= 8
    return tuple(made)


def length(max_context: int, widest: int) -> int:
    """How long caches are, for sequences of ``max_context`` tokens and chunks of up to ``widest``."""
    return max_context + widest


class Slots:
    """How many keys each slot has: written by every step, read where a slot takes no part in one.

    ``pool`` is the number of the pool of keys among those of the engine. With ``filled``, a step in which all
    sequences decode has a row for every slot from the first on: there are few such shapes, so that graphs can
    be captured for them. No op may be run on its rows that changes more than keys at the rows' positions.
    Steps that are ``anchored`` begin at the first slot, for memory that is not aligned at others. Steps over
    chunks have one of ``shapes``, if any are given.
    """

    def __init__(
        self,
        slots: int,
        pool: int = 0,
        filled: bool = False,
        anchored: bool = False,
        shapes: tuple[Shape, ...] = (),
    ) -> None:
        self.lengths: Ints = np.zeros(slots, np.int32)
        self.pool, self.filled, self.anchored, self.shapes = pool, filled, anchored, shapes

    def steps(self, batch: Batch, packed: bool = False) -> list[SlotStep]:
        """A batch as steps: the sequences that decode, then those that bring more than one token.

        The latter make one step, or more where their slots lie too far apart for any of ``shapes``. With
        ``packed``, for kernels that take packed queries, all sequences make one step.
        """
        new = np.diff(batch.starts)
        if packed:
            return [self._step(batch, np.arange(len(new)))]
        decoding = [np.flatnonzero(new == 1)] if (new == 1).any() else []
        return [self._step(batch, part) for part in (*decoding, *self._chunks(batch, new))]

    def _chunks(self, batch: Batch, new: Ints) -> list[NDArray[np.intp]]:
        """The sequences that bring chunks, in the order of their slots, in as few parts as have a shape."""
        chunks = np.flatnonzero(new > 1)
        if not self.shapes or not len(chunks):
            return [chunks] if len(chunks) else []
        at = batch.tables[self.pool][chunks, 0]
        order = np.argsort(at)
        chunks, at = chunks[order], at[order]
        cuts, start, width = list[int](), 0, 0
        for i, s in enumerate(chunks):
            width = max(width, int(new[s]))
            span = int(at[i]) + 1 - (0 if self.anchored else int(at[start]))
            if i > start and not any(span <= slots and width <= tokens for slots, tokens in self.shapes):
                cuts.append(i)
                start, width = i, int(new[s])
        return np.split(chunks, cuts)

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
