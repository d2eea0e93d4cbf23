"""Which graph a step runs in: its own kind's, or a larger one while that costs less than to make its own."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import count
from weakref import WeakSet

import pytest
import torch

from irloom.backends.cuda import graphs as module
from irloom.backends.cuda.buckets import Bucket
from irloom.backends.cuda.graphs import LARGEST, WORTH, Graphs, Kind
from irloom.runtime.loop import Loop
from irloom.runtime.request import SamplingParams
from tests.backends.cuda.captures import Captures, Replayed
from tests.backends.cuda.device import DEVICE
from tests.backends.cuda.serving import LIMITS, Model


def decode(seqs: int, cuts: bool = False) -> Kind:
    return Bucket(seqs, seqs, True), cuts


def mixed(tokens: int, seqs: int) -> Kind:
    return Bucket(tokens, seqs, False), False


def having(*kinds: Kind) -> Graphs:
    """Graphs of these kinds."""
    graphs = Captures()
    for kind in kinds * 2:
        graphs.run(kind, lambda: None)
    assert graphs.captured == len(kinds)
    return graphs


def graphs() -> Graphs:
    """Those of an engine."""
    return Captures() if DEVICE == "cpu" else Graphs(enabled=True)


def test_a_kind_that_is_met_for_the_first_time_runs_in_the_smallest_graph_that_holds_it():
    graphs = having(decode(64), decode(48), decode(32))
    assert graphs.home(decode(40)) == decode(48)
    assert graphs.home(decode(72)) == decode(72)


def test_a_kind_that_ran_once_by_itself_is_captured_next():
    graphs = having(decode(64))
    graphs.run(decode(56), lambda: None)
    assert graphs.home(decode(56)) == decode(56)


def test_a_kind_that_has_wasted_as_much_as_a_graph_costs_gets_one():
    graphs = having(decode(64))
    enough = int(WORTH / 0.25)
    homes = [graphs.home(decode(48)) for _ in range(enough + 1)]
    assert homes == [decode(64)] * enough + [decode(48)]


def test_a_kind_whose_graph_made_room_for_another_is_met_as_if_for_the_first_time():
    graphs = having(decode(64))
    graphs.filled[decode(48)] = WORTH
    assert graphs.home(decode(48)) == decode(48)
    graphs.run(decode(48), lambda: None)
    del graphs.graphs[decode(48)]
    assert graphs.home(decode(48)) == decode(64)


def test_a_pool_whose_graphs_are_all_gone_takes_no_more(monkeypatch: pytest.MonkeyPatch):
    """As torch has it: there is another one where all graphs were let go, or the only one made room."""
    pools = count()
    inside: dict[int, WeakSet[Replayed]] = {}

    def captured(queue: Callable[[], None], stream: object, pool: int) -> Replayed:
        graph = Replayed(queue)
        assert pool not in inside or inside[pool], "it is closed"
        inside.setdefault(pool, WeakSet()).add(graph)
        return graph

    for name, value in {"graph_pool_handle": pools.__next__, "synchronize": object}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name, value in {"capture_stream": object, "captured": captured}.items():
        monkeypatch.setattr(module, name, value)
    graphs = Graphs(enabled=True)

    def run(*sizes: int) -> None:
        for seqs in sizes:
            graphs.run(decode(seqs), lambda: None)

    run(1, 1, 2, 2)
    graphs.clear()
    run(1, 1, 2, 2)
    graphs.most = 1
    graphs.clear()
    run(1, 1, 2, 2)
    gc.collect()
    assert graphs.captured == 6
    assert [len(held) for held in inside.values()] == [0, 0, 0, 1]


def test_what_would_be_mostly_empty_is_run_as_it_is():
    graphs = having(decode(64))
    assert graphs.home(decode(8)) == decode(64)
    assert graphs.home(decode(4)) == decode(4)


def test_a_step_with_cuts_needs_a_graph_that_looks_for_them():
    plain, cut = having(decode(8)), having(decode(8, cuts=True))
    assert plain.home(decode(8, cuts=True)) == decode(8, cuts=True)
    assert cut.home(decode(8)) == decode(8, cuts=True)


def test_prompts_run_in_graphs_of_prompts_while_those_are_small():
    graphs = having(decode(64), mixed(64, 32), mixed(2 * LARGEST, 8))
    assert graphs.home(mixed(48, 8)) == mixed(64, 32)
    assert graphs.home(mixed(LARGEST, 8)) == mixed(LARGEST, 8)
    assert graphs.home(decode(48)) == decode(64)


def test_text_does_not_depend_on_the_graph():
    """Five sequences decode in a graph for eight, and so do the three that are left when two have ended."""
    model = Model.of("llama")
    drawn = SamplingParams(max_tokens=5, temperature=0.9, top_k=5, seed=7, logprobs=2, ignore_eos=True)
    greedy = [SamplingParams(max_tokens=n, temperature=0.0, ignore_eos=True) for n in (3, 3, 5, 5)]

    def said(graphs: Graphs) -> list[list[int]]:
        engine = model.engine(model.program(), LIMITS, DEVICE)
        engine.graphs = graphs
        outputs = Loop(engine).generate([[n] for n in range(4, 9)], [*greedy, drawn])
        return [output.token_ids for output in outputs]

    captured = graphs()
    assert said(captured) == said(Graphs(enabled=False))
    assert captured.captured == 1 and captured.replayed == 4
    assert captured.filled == {decode(4, cuts=True): 2 * 0.5}


def test_a_request_alone_is_run_as_it_is():
    """It says the same whatever ran before."""
    model = Model.of("llama")
    engine = model.engine(model.program(), LIMITS, DEVICE)
    engine.graphs, loop = graphs(), Loop(engine)
    greedy = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    loop.generate([[4], [5], [6]], greedy)
    loop.generate([[4]], greedy)
    assert [*engine.graphs.graphs] == [decode(4), decode(1)]
    assert not engine.graphs.filled
