"""CUDA graphs: what a network queues for a step of one size, queued at once from the third such step on."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

from .executor import Executor, PlanExecutor, Tensors

KEPT = 64
"""Graphs of one network, those that were used last."""

Key = tuple[object, ...]


def graphed(executor: PlanExecutor) -> Executor:
    """An executor whose runs are captured, unless the library does so itself."""
    return executor if executor.scratch.captures else Graphed(executor)


class Graphed:
    """An executor whose runs are captured: of runs that are the same, the second, and replayed from there.

    A run is the same where every tensor lies where it did, with the same dims. What cannot be captured (a
    kernel that asks the host, say) goes on as it is; ``captures`` says so.
    """

    def __init__(self, inner: Executor) -> None:
        self.inner, self.network = inner, inner.network
        self.graphs: OrderedDict[Key, torch.cuda.CUDAGraph | None] = OrderedDict()
        self.captures, self.replays = True, 0
        self.pool: Any = None

    def run(self, inputs: Tensors, outputs: Tensors) -> None:
        """See ``Executor``."""
        key = tuple((name, x.data_ptr(), x.shape) for given in (inputs, outputs) for name, x in given.items())
        if key in self.graphs and self.captures:
            self.graphs.move_to_end(key)
            graph = self.graphs[key] or self._captured(key, inputs, outputs)
            if graph is not None:
                graph.replay()
                self.replays += 1
                return
        self.inner.run(inputs, outputs)
        self.graphs.setdefault(key, None)
        if len(self.graphs) > KEPT:
            self.graphs.popitem(last=False)

    def _captured(self, key: Key, inputs: Tensors, outputs: Tensors) -> torch.cuda.CUDAGraph | None:
        """The graph of a run; None where it cannot be captured.

        Nothing that a run leaves lies in memory of its graph, so all graphs work in the same.
        """
        if not any(graph is not None for graph in self.graphs.values()):
            self.pool = torch.cuda.graph_pool_handle()  # torch closes one whose graphs are all gone
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                self.inner.run(inputs, outputs)
        except RuntimeError:
            self.captures = False
            self.graphs.clear()
            return None
        self.graphs[key] = graph
        return graph
