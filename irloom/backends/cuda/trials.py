"""Steps that nobody asked for: what they make does not matter, but their kernels are loaded, or compiled."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from irloom.ir.plan import Pool
from irloom.runtime.core import DRAW, Batch

from .engine import CudaEngine
from .graphs import Graphs
from .tuning import untimed

PROMPT = 128
"""Tokens of the prompt that an engine tries as it opens."""


def first_steps(engine: CudaEngine) -> None:
    """Queue a prompt, and a step that decodes: the first request then finds their kernels on the GPU.

    Weights may be zeros. A program with bodies is left alone: they may ask the host what they have computed.
    """
    if not engine.program.fallbacks:
        prompt = min(PROMPT, engine.max_tokens, engine.max_context)
        with untimed():  # weights are on their way, and would disturb the clock
            queue_all(engine, [trial(engine, [n]) for n in (prompt, 1)])


def queue_all(engine: CudaEngine, todo: Sequence[Batch]) -> None:
    """Queue every step as its first time is, not in a graph."""
    graphs, engine.graphs = engine.graphs, Graphs(enabled=False)
    try:
        for batch in todo:
            with suppress(Exception):  # it fails again, and says so, when it is run
                engine.submit(batch)
    finally:
        engine.graphs = graphs
        engine.runner.work.reset()
        engine.arrays.settle()  # a rehearsal leaves launches out


def trial(engine: CudaEngine, counts: list[int]) -> Batch:
    """Sequences that bring so many tokens, and have none before; they greedily choose the next."""
    seqs, longest = len(counts), max(counts)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    draws = np.zeros(seqs, DRAW)
    draws["asked"], draws["top_p"] = 1, 1.0
    return Batch(
        tokens=np.arange(starts[-1], dtype=np.int32) % engine.vocab,
        positions=np.concatenate([np.arange(n, dtype=np.int32) for n in counts]),
        starts=starts,
        context=np.array(counts, np.int32),
        tables=tuple(_table(pool, seqs, longest) for pool in engine.pools),
        sampling=[None] * seqs,
        draws=draws,
    )


def _table(pool: Pool, seqs: int, longest: int) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    pages = -(-longest // pool.page)
    return (np.arange(seqs * pages, dtype=np.int32) % pool.pages).reshape(seqs, pages)
