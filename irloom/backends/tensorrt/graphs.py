"""CUDA graphs: what a network queues for a step of one size, queued at once from the third such step on."""

from __future__ import annotations

from collections import OrderedDict

import torch

from .executor import Executor, Tensors

KEPT = 64
"""Graphs of one network, those that were used last."""

Key = tuple[object, ...]


class Graphed:
    """An executor whose runs are captured: of runs that are the same, the second, and replayed from there.

    A run is the same where every tensor lies where it did, with the same dims. What cannot be captured (a
    kernel that asks the host, say) goes on as it is; ``captures`` says so.
    """

    def __init__(self, inner: Executor) -> None:
        self.inner, self.network = inner, inner.network
        self.graphs: OrderedDict[Key, torch.cuda.CUDAGraph | None] = OrderedDict()
        self.captures = True
        self.replays = 0

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
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.inner.run(inputs, outputs)
        except RuntimeError:
            self.captures = False
            self.graphs.clear()
            return None
        self.graphs[key] = graph
        return graph
