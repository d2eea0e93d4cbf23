"""CUDA graphs of whole steps, one a kind: from the second step of a kind on, one call queues it all."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable

import torch

from .buckets import Bucket
from .room import out_of_memory

Kind = tuple[Bucket, bool]
"""A bucket, and whether a row of its steps is drawn with a cut."""
KEPT = 160
"""Graphs that are kept, those used last."""


class Graphs:
    """Steps of each kind, captured. What a step leaves lies where it always does.

    The first step of a kind runs as it is: kernels are compiled and chosen then, and scratch memory grows.
    Where there is no memory for one more graph, fewer are kept from then on, and the step runs as it is.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.most = KEPT if enabled else 0
        self.graphs: OrderedDict[Kind, torch.cuda.CUDAGraph | None] = OrderedDict()
        self.pool = torch.cuda.graph_pool_handle() if enabled else None
        self.captured = self.replayed = 0

    def run(self, kind: Kind, queue: Callable[[], None]) -> None:
        """Queue a step: ``queue`` does so launch by launch."""
        if not self.most:
            queue()
            return
        if kind not in self.graphs:
            queue()
            self.graphs[kind] = None
            if len(self.graphs) > self.most:
                self.graphs.popitem(last=False)
            return
        self.graphs.move_to_end(kind)
        graph = self.graphs[kind] or self._captured(kind, queue)
        if graph is None:
            queue()
            return
        graph.replay()
        self.replayed += 1

    def clear(self) -> None:
        """Give the memory of all graphs back; steps are captured again."""
        if self.pool is not None:
            torch.cuda.synchronize()  # one may be running
        self.graphs.clear()

    def _captured(self, kind: Kind, queue: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        try:
            graph = self._capture(queue)
        except Exception as error:
            if not out_of_memory(error):
                raise
            self.most = sum(g is not None for g in self.graphs.values()) // 2
            warnings.warn(
                f"cuda: no memory for another graph: {self.most} are kept from now on, other steps are "
                "slower; a smaller `memory` leaves more",
                RuntimeWarning,
                stacklevel=2,
            )
            self.clear()
            return None
        self.graphs[kind] = graph
        self.captured += 1
        return graph

    def _capture(self, queue: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            queue()
        return graph
