"""Random arrivals, lengths, priorities, cancellations and failures on tiny pools, checked at every step."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from irloom.ir.errors import RequestError
from irloom.ir.plan import Pool
from irloom.runtime.core import SamplingRow
from irloom.runtime.loop import Loop
from irloom.runtime.request import SamplingParams

from .engine import HashEngine, LateEngine, oracle

LONG = 61
"""A page that holds a whole sequence: a slot."""
STEMS = [[5] * 40, [1, 2, 3, 4] * 10, list(range(40))]

attention = st.builds(
    Pool,
    name=st.just("pool"),
    window=st.sampled_from([None, 1, 2, 5, 8, 9]),
    page=st.sampled_from([1, 2, 4]),
    page_bytes=st.just(0),
    pages=st.integers(1, 14),
)
states = st.builds(
    Pool,
    name=st.just("state"),
    window=st.just(2),
    page=st.sampled_from([1, 2, 3, 4, 8]),
    page_bytes=st.just(0),
    pages=st.integers(1, 14),
    cut=st.just(True),
)
pools = st.lists(st.one_of(attention, states), min_size=1, max_size=3)
slots = st.builds(
    lambda window, cut, n: [Pool("slot", window, LONG, 0, n), Pool("state", 2, LONG, 0, n, cut=True)][
        : 1 + cut
    ],
    st.sampled_from([None, 5]),
    st.booleans(),
    st.integers(1, 6),
)
sampling = st.builds(
    SamplingParams,
    max_tokens=st.one_of(st.none(), st.integers(1, 12)),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 5),
    min_tokens=st.sampled_from([0, 0, 1]),
    presence_penalty=st.sampled_from([0.0, 1.0]),
)
prompts = st.builds(
    lambda stem, n, tail: [*stem[:n], *tail],
    st.sampled_from(STEMS),
    st.integers(0, 30),
    st.lists(st.integers(0, 9), max_size=3),
)


class Serving(RuleBasedStateMachine):
    """A loop and what its requests should say."""

    make = HashEngine

    @initialize(
        pools=st.one_of(pools, slots),
        budget=st.integers(1, 12),
        seqs=st.integers(1, 5),
        context=st.integers(4, 60),
        eos=st.sampled_from([(), (), (3, 17, 40)]),
    )
    def open(self, pools: list[Pool], budget: int, seqs: int, context: int, eos: tuple[int, ...]) -> None:
        self.pools, self.eos, self.failed = pools, eos, False
        self.engine = self.make(tuple(pools), budget, seqs, context)
        self.loop = Loop(self.engine, eos=eos)
        self.asked: dict[str, tuple[Sequence[int], SamplingParams]] = {}
        self.said: dict[str, list[int]] = {}

    @rule(prompt=prompts, params=sampling, priority=st.integers(-1, 1), salt=st.sampled_from(["", "", "x"]))
    def arrive(self, prompt: list[int], params: SamplingParams, priority: int, salt: str) -> None:
        if 0 < len(prompt) <= self.loop.pages.capacity:
            name = self.loop.add_request(prompt, params, priority=priority, cache_salt=salt)
            self.asked[name], self.said[name] = (prompt, params), []
        else:
            with pytest.raises(RequestError):
                self.loop.add_request(prompt, params)

    @precondition(lambda self: self.loop.unfinished)
    @rule(steps=st.integers(1, 4))
    def work(self, steps: int) -> None:
        for _ in range(steps if self.loop.unfinished else 0):
            self.step()

    @precondition(lambda self: self.loop.unfinished)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        live = sorted(set(self.asked) - {o for o, done in self.done.items() if done})
        name = data.draw(st.sampled_from(live))
        output = self.loop.cancel(name)
        assert output is not None
        assert output.token_ids[: len(self.said[name])] == self.said[name]  # a step that fails tells nothing

    @precondition(lambda self: self.loop.unfinished)
    @rule(error=st.sampled_from([RuntimeError(), KeyboardInterrupt()]))
    def fail(self, error: BaseException) -> None:
        """A step that fails ends its own requests, an interrupt all; others say what they should."""
        self.failed = True
        raised = self.fails(error)
        if raised and isinstance(error, KeyboardInterrupt):
            assert self.loop.unfinished == 0
            assert self.loop.pages.in_use == 0

    def fails(self, error: BaseException) -> bool:
        """Whether the error came: it must from an engine that does not overlap."""
        self.engine.fail_at = {len(self.engine.batches) + 1: error}
        with pytest.raises(type(error)):
            self.loop.step()
        return True

    @property
    def done(self) -> dict[str, bool]:
        return {name: name not in self.loop._live for name in self.asked}

    def step(self) -> None:
        """Something runs, what runs says what it should, and blank pages are spoiled afterwards."""
        steps, live = self.steps, self.loop.unfinished
        for delta in self.loop.step():
            self.said[delta.id] += delta.token_ids
            if delta.output is not None:
                assert delta.output.token_ids == self.said[delta.id]
                self.compare(delta.id, delta.output.finish_reason)
        self.check_step(steps, live)
        self.engine.spoil([pool.blank for pool in self.loop.pages.pools])
        self.loop.check()

    @property
    def steps(self) -> int:
        return len(self.engine.batches)

    def check_step(self, steps: int, live: int) -> None:
        assert self.steps == steps + 1 or not self.loop.unfinished
        if live and self.pools[0].page == LONG:
            self.check_slots(live)

    def check_slots(self, live: int) -> None:
        """A sequence has one slot; every slot is used as long as requests wait and tokens are left."""
        pages, batch = self.loop.pages, self.engine.batches[-1]
        assert all(pool.in_use == len(self.loop.scheduler.running) for pool in pages.pools)
        assert all((rows == pages.tables[0]).all() for rows in pages.tables), "a slot has two numbers"
        most = min(live, pages.max_slots, self.pools[0].pages)
        assert len(batch.context) == most or len(batch.tokens) == self.engine.max_tokens

    def compare(self, name: str, reason: str) -> None:
        prompt, params = self.asked[name]
        room = self.loop.pages.capacity + 1 - len(prompt)
        steps = min(room, params.max_tokens or room)
        said, row = self.said[name], SamplingRow(params, params.seed or 0, 0, self.eos)
        assert said == oracle(self.pools, prompt, len(said), row)
        assert not set(said[:-1]) & set(self.eos)
        if said and said[-1] in self.eos:
            assert reason == "stop"
        elif len(said) == steps:
            assert reason == "length"
        else:
            assert reason == "cancelled" or (reason == "error" and self.failed)

    @invariant()
    def check(self) -> None:
        self.loop.check()

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            while self.loop.unfinished:
                self.step()
            self.loop.step()
            assert self.loop.pages.in_use == 0
            assert all(self.done.values())


class Overlapping(Serving):
    """The same on an engine that is always a step behind."""

    make = LateEngine
    idle = False

    @property
    def steps(self) -> int:
        assert isinstance(self.engine, LateEngine)
        return self.engine.submitted

    def check_step(self, steps: int, live: int) -> None:
        """Something is submitted, or all that could run waited for a token: then it runs in the next."""
        idle = self.steps == steps and self.loop.unfinished > 0
        assert not (idle and self.idle)
        self.idle = idle

    def fails(self, error: BaseException) -> bool:
        """Where it is found: when the step is submitted, or when its tokens are taken."""
        assert isinstance(self.engine, LateEngine)
        refused = isinstance(error, RuntimeError) and len(self.asked) % 2 == 0
        failing = self.engine.refuse_at if refused else self.engine.fail_at
        failing[self.engine.submitted + 1] = error
        try:
            for _ in range(3):
                self.step()
        except type(error):
            return True
        finally:
            failing.clear()
        return False


TestServing = Serving.TestCase
TestServing.settings = settings(max_examples=120, stateful_step_count=25)
TestOverlapping = Overlapping.TestCase
TestOverlapping.settings = settings(max_examples=120, stateful_step_count=25)
