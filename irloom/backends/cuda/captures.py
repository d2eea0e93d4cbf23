"""Captures of CUDA graphs, during which nothing is collected: a graph that is let go breaks a capture off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from irloom.ir.garbage import uncollected


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
