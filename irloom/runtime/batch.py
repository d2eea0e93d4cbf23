"""From the scheduler's chunks to the packed arrays an engine reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from irloom.runtime.core import Batch, Draws, SamplingRow
from irloom.runtime.pages import Pages
from irloom.runtime.request import Request
from irloom.runtime.scheduler import Chunks
from irloom.runtime.sequences import Sequences


def build(chunks: Chunks, pages: Pages, sequences: Sequences) -> Batch:
    """The batch of one step; nothing here grows with the context but the copied rows of the page tables."""
    slots, counts = chunks.slots, chunks.counts
    stored = pages.stored[slots]
    starts = np.zeros(len(slots) + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    context = stored + counts
    positions = np.arange(starts[-1], dtype=np.int32) + np.repeat(stored - starts[:-1], counts)
    tokens = sequences.tokens[np.repeat(slots, counts), positions]
    late = np.full(len(tokens), -1, np.int32)
    awaited = np.flatnonzero(context > sequences.known[slots])
    late[starts[1:][awaited] - 1] = sequences.row[slots[awaited]]
    tokens[late >= 0] = 0
    draws = sequences.draw[slots]
    draws["position"], draws["asked"] = context - sequences.prompt[slots], chunks.samples
    banned = context < sequences.free[slots]
    rare = np.flatnonzero(chunks.samples & (sequences.special[slots] | banned))
    longest = int(context.max())
    return Batch(
        tokens=tokens,
        positions=positions,
        starts=starts,
        context=context,
        tables=tuple(
            rows[slots, : -(-longest // spec.page)]
            for spec, rows in zip(pages.specs, pages.tables, strict=True)
        ),
        sampling=Rows(chunks.requests, draws, banned),
        late=late,
        draws=draws,
        rare=tuple(rare.tolist()),
    )


class Rows(Sequence[SamplingRow | None]):
    """How each request's next token is chosen; an entry is made when it is asked for."""

    def __init__(self, requests: list[Request], draws: Draws, banned: NDArray[np.bool_]) -> None:
        self._requests, self._draws, self._banned = requests, draws, banned

    def __len__(self) -> int:
        return len(self._requests)

    @overload
    def __getitem__(self, at: int) -> SamplingRow | None: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[SamplingRow | None]: ...
    def __getitem__(self, at: int | slice) -> SamplingRow | Sequence[SamplingRow | None] | None:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not self._draws["asked"][at]:
            return None
        request = self._requests[at]
        banned = tuple(request.stop_ids) if self._banned[at] else ()
        position = int(self._draws["position"][at])
        return SamplingRow(request.params, request.seed, position, banned, request.seen, request.counts)
