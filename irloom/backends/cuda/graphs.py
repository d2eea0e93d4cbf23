"""CUDA graphs of whole steps, one a kind: from the second step of a kind on, one call queues it all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch

from .buckets import Bucket

Kind = tuple[Bucket, bool]
"""A bucket, and whether a row of its steps is drawn with a cut."""
KEPT = 160
"""Graphs that are kept, those used last."""


class Graphs:
    """Steps of each kind, captured. What a step leaves lies where it always does.

    The first step of a kind runs as it is: kernels are compiled and chosen then, and scratch memory grows.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.graphs: OrderedDict[Kind, torch.cuda.CUDAGraph | None] = OrderedDict()
        self.pool = torch.cuda.graph_pool_handle() if enabled else None
        self.captured = self.replayed = 0

    def run(self, kind: Kind, queue: Callable[[], None]) -> None:
        """Queue a step: ``queue`` does so launch by launch."""
        if not self.enabled:
            queue()
            return
        if kind not in self.graphs:
            queue()
            self.graphs[kind] = None
            if len(self.graphs) > KEPT:
                self.graphs.popitem(last=False)
            return
        self.graphs.move_to_end(kind)
        graph = self.graphs[kind]
        if graph is None:
            graph = self.graphs[kind] = self._capture(queue)
        graph.replay()
        self.replayed += 1

    def _capture(self, queue: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            queue()
        self.captured += 1
        return graph
