"""Captures of CUDA graphs, on streams that nobody else has: nothing is collected meanwhile.

A graph that is let go breaks a capture off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from irloom.ir.garbage import uncollected


def capture_stream(device: torch.device | int | None = None) -> torch.cuda.Stream:
    """A stream that captures alone have: what another thread does on it would be captured, and not be done.

    torch hands out 32 streams of each priority in turn; the threads that read an engine's weights, of which
    there are many, have the usual one.
    """
    return torch.cuda.Stream(device, priority=-1)


def captured(
    queue: Callable[[], object], stream: torch.cuda.Stream | None, pool: Any = None
) -> torch.cuda.CUDAGraph:
    """What ``queue`` launches, on ``stream``, with memory of ``pool``, a ``torch.cuda.graph_pool_handle``.

    Not by ``torch.cuda.graph``: that waits for the GPU, which has the step before to run meanwhile, and
    empties torch's cache of memory.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream), uncollected():
        graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            queue()
        finally:
            graph.capture_end()
    return graph
