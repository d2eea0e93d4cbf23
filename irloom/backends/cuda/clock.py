"""How long launches take on the GPU as an engine has them: in a CUDA graph, over cold weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from statistics import median

import torch

RUNS = 5
"""Runs in the graph that is timed."""
REPLAYS = 3
HOPELESS = 1.25
"""What takes so many times the least on its first replay is not replayed again."""
FLUSH = 128 << 20
"""Bytes that are read between two runs: more than the L2 cache of any GPU holds."""


def microseconds(run: Callable[[], object], least: float = math.inf) -> float:
    """How long ``run`` takes in a CUDA graph when nothing that it reads is in the L2 cache.

    ``least`` is what it has to beat: nothing that is far from it is measured well.
    """
    flush, flushing = _flush(torch.cuda.current_device()), _flush_time(torch.cuda.current_device())

    def cold() -> None:
        flush()
        run()

    return max(0.0, replayed(cold, least * HOPELESS + flushing) - flushing)


def replayed(run: Callable[[], object], most: float = math.inf) -> float:
    """Median microseconds of one ``run`` of ``RUNS`` in a graph; those of the first replay where it takes
    more than ``most``.
    """
    graph = _captured(run)
    first = _replay(graph)
    return first if first > most else median(_replay(graph) for _ in range(REPLAYS))


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000 / RUNS


def _captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """``RUNS`` runs. Not by ``torch.cuda.graph``, which empties torch's cache of memory each time."""
    graph, stream = torch.cuda.CUDAGraph(), _stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # what a library makes for a stream is there before the capture
        stream.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for _ in range(RUNS):
                run()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph


@cache
def _stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@cache
def _flush(device: int) -> Callable[[], object]:
    """Reads ``FLUSH`` bytes. What is only read needs no write back, which would slow the next run down."""
    data, total = torch.zeros(FLUSH // 4, device=device), torch.zeros((), device=device)
    return lambda: torch.sum(data, dim=0, out=total)


@cache
def _flush_time(device: int) -> float:
    return replayed(_flush(device))
