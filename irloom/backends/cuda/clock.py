"""How long launches take on the GPU as an engine has them: in a CUDA graph, over cold weights.

And how long those take that fill the card for seconds: at its power limit clocks fall, by more where a run
draws more, so that the fastest of a short burst need not stay it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import median

import torch

from .captures import capture_stream, captured

RUNS = 5
"""Runs in the graph that is timed."""
REPLAYS = 3
HOPELESS = 1.25
"""What takes so many times the least on its first replay is not replayed again."""
FLUSH = 128 << 20
"""Bytes that are read between two runs: more than the L2 cache of any GPU holds."""

HEAT, LEAD, TIMED = 80.0, 20.0, 25.0
"""Milliseconds: until the power limit acts on a card that was idle; of a run before it is timed, until the
card's clock is its own; and of those that are timed.
"""
CLOSE = 1.1
"""What takes at most so many times the least is timed again."""


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


def sustained(runs: Sequence[Callable[[], object]]) -> list[float]:
    """Microseconds of each run, back to back for so long that the card's clock is what the run makes it.

    Those that are close go a second time, from the last to the first, since each begins with the clock that
    the one before has left; now and then a card slows down by a tenth for a while, so the lesser time counts.
    All of a lap is queued at once: the card does not rest.
    """
    graphs = [_captured(run) for run in runs]
    each = [_replay(graph) * RUNS / 1000 for graph in graphs]
    _replays(graphs[0], HEAT / each[0])
    took = _lap(graphs, each)
    close = [i for i, t in enumerate(took) if t <= min(took) * CLOSE][::-1]
    if len(close) > 1:
        again = _lap([graphs[i] for i in close], [each[i] for i in close])
        for i, t in zip(close, again, strict=True):
            took[i] = min(took[i], t)
    return took


def _lap(graphs: Sequence[torch.cuda.CUDAGraph], each: Sequence[float]) -> list[float]:
    """Microseconds of each one's runs, of graphs that take so many milliseconds ``each``, one by one."""
    timed: list[tuple[torch.cuda.Event, torch.cuda.Event, int]] = []
    for graph, took in zip(graphs, each, strict=True):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        _replays(graph, LEAD / took)
        start.record()
        count = _replays(graph, TIMED / took)
        end.record()
        timed.append((start, end, count))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1000 / RUNS / count for start, end, count in timed]


def _replays(graph: torch.cuda.CUDAGraph, least: float) -> int:
    """Queues at least so many; their number."""
    count = max(1, math.ceil(least))
    for _ in range(count):
        graph.replay()
    return count


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000 / RUNS


def _captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """``RUNS`` runs."""
    stream = _stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # what a library makes for a stream is there before the capture
        stream.synchronize()
    graph = captured(lambda: [run() for _ in range(RUNS)], stream)
    torch.cuda.current_stream().wait_stream(stream)
    return graph


@cache
def _stream(device: int) -> torch.cuda.Stream:
    return capture_stream(device)


@cache
def _flush(device: int) -> Callable[[], object]:
    """Reads ``FLUSH`` bytes. What is only read needs no write back, which would slow the next run down."""
    with torch.inference_mode(False):  # whoever asks first may be inside, others not
        data, total = torch.zeros(FLUSH // 4, device=device), torch.zeros((), device=device)
    return lambda: torch.sum(data, dim=0, out=total)


@cache
def _flush_time(device: int) -> float:
    return replayed(_flush(device))
