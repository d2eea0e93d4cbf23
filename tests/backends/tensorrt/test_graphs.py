"""Graphs of a network's runs: the second run of a kind is captured, with memory of a pool that is open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from weakref import WeakSet

import pytest
import torch

from irloom.backends.tensorrt import graphs as module
from irloom.backends.tensorrt.graphs import Graphed


class Graph:
    """One that is captured of nothing."""

    replay = staticmethod(lambda: None)


def test_a_pool_whose_graphs_are_all_gone_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch has it: there is another one where runs that are not captured have pushed all graphs out."""
    pools, inside = count(), dict[int, WeakSet[Graph]]()

    @contextmanager
    def capturing(graph: Graph, pool: int) -> Iterator[None]:
        if pool in inside and not inside[pool]:
            raise RuntimeError("it is closed")
        inside.setdefault(pool, WeakSet()).add(graph)
        yield

    for name, value in {"graph_pool_handle": pools.__next__, "CUDAGraph": Graph, "graph": capturing}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(module, "KEPT", 2)
    inner = SimpleNamespace(network=None, run=lambda inputs, outputs: None)
    graphed = Graphed(inner)  # pyright: ignore[reportArgumentType]

    def run(*sizes: int) -> None:
        for size in sizes:
            graphed.run({"x": torch.empty(size, device="meta")}, {})

    run(1, 1, 2, 2)
    assert graphed.replays == 2 and len(inside) == 1, "graphs work in the same memory"
    run(3, 4, 4)
    assert graphed.captures and graphed.replays == 3
    assert [len(held) for held in inside.values()] == [0, 1]
