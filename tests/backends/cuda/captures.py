"""Graphs of steps where there may be no GPU to capture them on: a step that is replayed is queued again."""

from __future__ import annotations

from collections.abc import Callable

import torch

from irloom.backends.cuda.graphs import KEPT, Graphs


class Captures(Graphs):
    """Graphs that take ``room`` of memory in all, counted instead of captured."""

    def __init__(self, room: int = KEPT) -> None:
        super().__init__(enabled=False)
        self.most, self.room = KEPT, room

    def _capture(self, queue: Callable[[], None]) -> torch.cuda.CUDAGraph:
        if sum(g is not None for g in self.graphs.values()) == self.room:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            except torch.OutOfMemoryError:
                raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        return Replayed(queue)  # type: ignore[return-value]


class Replayed:
    """A graph that runs what it was made of."""

    def __init__(self, queue: Callable[[], None]) -> None:
        self.replay = queue
