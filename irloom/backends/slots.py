"""Steps over slots: a sequence's keys and values lie in one slot of a linear cache, not in pages.

The caches of a layer are ``[slots, KV heads, length, head dim]``, so a slot's number is its place in the
batch of an attention. Rows stay packed, as everywhere in irloom: only attention and the update of a cache see
slots, and where their kernels take no packed rows, rows are padded there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from irloom.runtime.core import Batch, Ints


@dataclass(frozen=True)
class SlotStep:
    """Some sequences of a batch, over the slots ``first`` to ``first + B - 1``. All arrays are i32.

    ``sequences`` are their numbers in the batch, in the order of their slots; rows are packed in this order.
    ``tokens`` and ``positions`` [T], ``last`` [S] (the last row of each sequence), ``starts`` [B + 1] (where
    the rows of a slot begin). ``past`` [B] is where a slot's new keys are written, ``lengths`` [B] how many
    there are then; a slot that takes no part has a length of at least 1, and what is written for it lies
    behind its own keys. ``pad`` [B, N] is the row of token ``n`` of a slot, 0 where it has none; ``unpad``
    [T] is the place ``b * N + n`` of each row.
    """

    sequences: tuple[int, ...]
    first: int
    tokens: Ints
    positions: Ints
    last: Ints
    starts: Ints
    past: Ints
    lengths: Ints
    pad: Ints
    unpad: Ints

    @property
    def width(self) -> int:
        """``N``: the most tokens that one slot brings; 1 where all decode."""
        return self.pad.shape[1]


class Slots:
    """How many keys each slot has: written by every step, read where a slot takes no part in one."""

    def __init__(self, slots: int) -> None:
        self.lengths: Ints = np.zeros(slots, np.int32)

    def steps(self, batch: Batch, packed: bool = False) -> list[SlotStep]:
        """A batch as steps: the sequences that decode, then those that bring more than one token.

        With ``packed``, for kernels that take packed queries, all sequences make one step.
        """
        new = np.diff(batch.starts)
        decode = np.flatnonzero(new == 1) if not packed else np.arange(0)
        chunks = np.flatnonzero(new > 1) if not packed else np.arange(len(new))
        return [self._step(batch, part.tolist()) for part in (decode, chunks) if len(part)]

    def _step(self, batch: Batch, sequences: Sequence[int]) -> SlotStep:
        owner = {int(batch.tables[0][s, 0]): s for s in sequences}
        order = sorted(owner)
        first, count = order[0], order[-1] - order[0] + 1
        new = np.zeros(count, np.int32)
        past = self.lengths[first : first + count].copy()
        rows: list[Ints] = []
        for slot in order:
            s, b = owner[slot], slot - first
            new[b] = batch.starts[s + 1] - batch.starts[s]
            past[b] = batch.context[s] - new[b]
            rows.append(np.arange(batch.starts[s], batch.starts[s + 1], dtype=np.int32))
        at = np.concatenate(rows)
        starts = np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
        width = int(new.max())
        pad = np.zeros((count, width), np.int32)
        real = np.arange(width) < new[:, None]
        pad[real] = np.arange(len(at))
        used = past + new
        self.lengths[first : first + count] = used
        ends = starts[1:][new > 0] - 1
        return SlotStep(
            tuple(owner[slot] for slot in order),
            first,
            batch.tokens[at],
            batch.positions[at],
            ends.astype(np.int32),
            starts,
            past.astype(np.int32),
            np.maximum(used, 1).astype(np.int32),
            pad,
            np.flatnonzero(real).astype(np.int32),
        )
