"""CUDA graphs of whole steps, one a kind: from the second step of a kind on, one call queues it all.

A kind that has none runs in a larger kind's graph, until what that fills up has cost as much as a graph of
its own: so do the steps at the end of many requests, where ever fewer are left.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable

import torch

from .buckets import Bucket
from .captures import capture_stream, captured
from .room import out_of_memory

Kind = tuple[Bucket, bool]
"""A bucket, and whether a row of its steps is drawn with a cut."""
KEPT = 160
"""Graphs that are kept, those used last."""
LARGEST = 1024
"""Rows of the largest graph that smaller steps run in: more take the GPU longer than the host to launch."""
EMPTIEST = 0.9
"""The part of such a step that may be there to fill it up."""
CUT = 0.1
"""What the kernels that look for cuts cost where there are none, as a part of a step."""
WORTH = 16.0
"""Whole steps: when what was filled up comes to so many, a kind has a graph of its own. To launch its kernels
one by one and to capture them, loaded before, takes the host 0.1 s for 32 layers: 15 to 20 steps of 64
sequences of an 8B model, 4 of 1,024.
"""


class Graphs:
    """Steps of each kind, captured. What a step leaves lies where it always does.

    The first step that is run as its own kind is queued as it is: kernels are compiled and chosen then, and
    scratch memory grows. The next one is captured.
    Where there is no memory for one more graph, fewer are kept from then on, and the step runs as it is.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.most = KEPT if enabled else 0
        self.graphs: OrderedDict[Kind, torch.cuda.CUDAGraph | None] = OrderedDict()
        self.pool: tuple[int, int] | None = None
        self.stream = capture_stream() if enabled else None
        self.filled: dict[Kind, float] = {}
        self.captured = self.replayed = 0

    def home(self, kind: Kind) -> Kind:
        """The kind to run a step of ``kind`` as: its own, or one that has a graph and holds the step."""
        if kind in self.graphs:
            return kind
        larger = [k for k, graph in self.graphs.items() if graph is not None and _holds(k, kind)]
        best = min(larger, key=lambda k: _filled(k, kind), default=kind)
        filled = self.filled.get(kind, 0.0) + _filled(best, kind)
        if best == kind or filled > WORTH:
            return kind
        self.filled[kind] = filled
        return best

    def run(self, kind: Kind, queue: Callable[[], None]) -> None:
        """Queue a step: ``queue`` does so launch by launch."""
        if not self.most:
            queue()
            return
        if kind not in self.graphs:
            queue()
            self.graphs[kind] = None
            self.filled.pop(kind, None)  # where its graph makes room for others, it begins anew
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
        if self.stream is not None:
            torch.cuda.synchronize()  # one may be running
        self.graphs.clear()

    def _captured(self, kind: Kind, queue: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        try:
            graph = self._with_room(queue)
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

    def _with_room(self, queue: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """A capture makes no room for itself: where there is none, torch's cache is emptied for another."""
        try:
            return self._capture(queue)
        except Exception as error:
            if not out_of_memory(error):
                raise
        torch.cuda.empty_cache()
        return self._capture(queue)

    def _capture(self, queue: Callable[[], None]) -> torch.cuda.CUDAGraph:
        if not any(graph is not None for graph in self.graphs.values()):
            self.pool = torch.cuda.graph_pool_handle()  # torch closes one whose graphs are all gone
        return captured(queue, self.stream, self.pool)


def _holds(large: Kind, kind: Kind) -> bool:
    """Whether a step of ``kind`` can be run as one of ``large``, and is not too small a part of it."""
    (there, any_cut), (here, cuts) = large, kind
    return (
        there.decode == here.decode
        and here.tokens <= there.tokens <= LARGEST
        and here.seqs <= there.seqs
        and (any_cut or not cuts)
        and _filled(large, kind) <= EMPTIEST
    )


def _filled(large: Kind, kind: Kind) -> float:
    """Which part of a step of ``large`` is run for nothing: rows of its layers, and of the logits behind."""
    (there, any_cut), (here, cuts) = large, kind
    rows = (here.tokens + here.seqs) / (there.tokens + there.seqs)
    return 1 - rows + CUT * (any_cut != cuts)
