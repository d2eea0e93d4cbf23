"""From the scheduler's chunks to the packed arrays an engine reads."""

from __future__ import annotations

import numpy as np

from irloom.runtime.core import Batch, Ints, SamplingRow
from irloom.runtime.pages import Pages
from irloom.runtime.request import Request
from irloom.runtime.scheduler import Chunk


def build(chunks: list[Chunk], pages: Pages) -> Batch:
    """The batch of one step; nothing here grows with the context but the copied rows of the page tables."""
    requests = [chunk.request for chunk in chunks]
    counts = np.array([chunk.count for chunk in chunks], np.int32)
    stored = np.array([request.computed for request in requests], np.int32)
    starts = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    context = stored + counts
    slots = [request.table.slot for request in requests if request.table is not None]
    longest = int(context.max())
    return Batch(
        tokens=np.concatenate([new_tokens(chunk) for chunk in chunks]),
        positions=np.arange(starts[-1], dtype=np.int32) + np.repeat(stored - starts[:-1], counts),
        starts=starts,
        context=context,
        tables=tuple(
            rows[slots, : -(-longest // spec.page)]
            for spec, rows in zip(pages.specs, pages.tables, strict=True)
        ),
        sampling=tuple(
            sampling_row(request) if end == request.known else None
            for request, end in zip(requests, context.tolist(), strict=True)
        ),
    )


def new_tokens(chunk: Chunk) -> Ints:
    """The tokens of a chunk."""
    start = chunk.request.computed
    return chunk.request.tokens[start : start + chunk.count]


def sampling_row(request: Request) -> SamplingRow:
    """How to choose the request's next token."""
    params, generated = request.params, request.generated
    banned = tuple(request.stop_ids) if generated < params.min_tokens else ()
    return SamplingRow(params, request.seed, generated, banned, request.seen, request.counts)
