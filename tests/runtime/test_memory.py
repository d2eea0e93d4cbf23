"""Steps that the engine has no memory for: smaller ones follow, and nothing of them is in any text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.ir.errors import OutOfMemory
from irloom.ir.plan import Pool
from irloom.runtime.core import Batch, Sampled, SamplingRow
from irloom.runtime.loop import Loop
from irloom.runtime.request import SamplingParams
from irloom.runtime.scheduler import RECOVERY

from .engine import VOCAB, HashEngine, Late, LateEngine, oracle

ATTENTION = (Pool("full", None, 4, 0, 200), Pool("window", 6, 4, 0, 200))
HYBRID = (Pool("state", 2, 8, 0, 60, cut=True), Pool("pages", None, 4, 0, 200))
rng = np.random.default_rng(5)
PROMPTS = [rng.integers(0, VOCAB, n).tolist() for n in (1, 30, 4, 17, 9)]
GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


class Tight(HashEngine):
    """It has memory for steps of ``room`` tokens; of a larger one it stores noise before it gives up."""

    room = 1 << 30

    def step(self, batch: Batch) -> Sequence[Sampled | None]:
        if len(batch.tokens) > self.room:
            self.noise = 1
            self.run(batch)
            raise OutOfMemory(f"no memory for a step of {len(batch.tokens)} tokens")
        return super().step(batch)


class TightLate(LateEngine):
    """One that takes steps before it has run those in front of them."""

    room = 1 << 30

    def submit(self, batch: Batch) -> Late:
        if len(batch.tokens) <= self.room:
            return super().submit(batch)
        self.queue.append(lambda: self.spoilt(batch))
        raise OutOfMemory(f"no memory for a step of {len(batch.tokens)} tokens")

    def spoilt(self, batch: Batch) -> None:
        self.noise = 1
        self.run(self.ready(batch))


def drained(loop: Loop) -> dict[str, tuple[list[int], str]]:
    """What is said of each, and why it ended; every invariant holds after every step."""
    done: dict[str, tuple[list[int], str]] = {}
    while loop.unfinished:
        for delta in loop.step():
            if delta.output is not None:
                done[delta.id] = delta.output.token_ids, delta.output.finish_reason
        loop.check()
    assert loop.pages.in_use == 0
    return done


@pytest.mark.parametrize("engine", [Tight, TightLate])
@pytest.mark.parametrize("pools", [ATTENTION, HYBRID])
@settings(max_examples=12, deadline=None)
@given(room=st.integers(1, 20), since=st.integers(0, 9), again=st.integers(0, 20))
def test_every_request_says_what_it_says_with_memory_to_spare(engine, pools, room, since, again):
    made = engine(pools, 48, 4, 100)
    loop = Loop(made)
    for i, prompt in enumerate(PROMPTS):
        loop.add_request(prompt, GREEDY, id=str(i))
    early: dict[str, tuple[list[int], str]] = {}
    for left in (room, again or 1 << 30):
        for _ in range(since):
            for delta in loop.step():
                if delta.output is not None:
                    early[delta.id] = delta.output.token_ids, delta.output.finish_reason
            loop.check()
        made.room = left
    done = early | drained(loop)
    for i, prompt in enumerate(PROMPTS):
        assert done[str(i)] == (oracle(pools, prompt, 12, SamplingRow(GREEDY, 0, 0)), "length")


@pytest.mark.parametrize("engine", [Tight, TightLate])
def test_a_step_that_cannot_be_smaller_is_refused(engine):
    """Its request ends; the loop goes on as soon as there is memory."""
    made = engine(ATTENTION, 48, 4, 100)
    loop = Loop(made)
    made.room = 0
    loop.add_request(PROMPTS[1], GREEDY, id="it")
    loop.add_request(PROMPTS[2], GREEDY, id="other")
    with pytest.raises(OutOfMemory, match="a step of 1 token"):
        drained(loop)
    loop.check()
    made.room = 1
    done = drained(loop)
    assert sorted(reason for _, reason in done.values()) == ["error", "length"]
    assert done["other"] == (oracle(ATTENTION, PROMPTS[2], 12, SamplingRow(GREEDY, 0, 0)), "length")


def test_steps_grow_again():
    made = Tight(ATTENTION, 48, 4, 1000)
    loop = Loop(made)
    made.room = 8
    loop.add_request(PROMPTS[1], GREEDY)
    loop.step()
    made.room = 48
    sizes: list[int] = []
    for _ in range(4):
        drained(loop)
        sizes.append(loop.scheduler.budget)
        loop.scheduler.clock += RECOVERY
        loop.add_request(PROMPTS[2], GREEDY)
    assert sizes == [15, 30, 48, 48]
