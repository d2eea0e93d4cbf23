"""The loop ahead of its engine: a step is submitted before the tokens of the one in front are taken.

Random traffic on such an engine is in test_scheduler_properties.
"""

from __future__ import annotations

import pytest

from irloom.ir.plan import Pool
from irloom.runtime.core import SamplingRow
from irloom.runtime.loop import Loop
from irloom.runtime.request import SamplingParams

from .engine import HashEngine, LateEngine, oracle

POOLS = (Pool("full", None, 4, 0, 64),)
GREEDY = SamplingParams(max_tokens=12, temperature=0.0)
PROMPT = [7, 1, 9, 4, 4, 2, 8, 8, 5]
SAID = oracle(POOLS, PROMPT, 12, SamplingRow(GREEDY, 0, 0))
engines = pytest.mark.parametrize("make", [HashEngine, LateEngine])


def serve(make: type[HashEngine] = LateEngine, eos=(), budget: int = 64) -> tuple[Loop, HashEngine]:
    engine = make(POOLS, budget, 4, 60)
    return Loop(engine, eos=eos), engine


def drain(loop: Loop) -> dict[str, tuple[list[int], str]]:
    """What each request said, and why it ended; every invariant is checked after every step."""
    done = {}
    while loop.unfinished:
        for delta in loop.step():
            if delta.output is not None:
                done[delta.id] = (delta.output.token_ids, str(delta.output.finish_reason))
        loop.check()
    done |= {d.id: (d.output.token_ids, str(d.output.finish_reason)) for d in loop.step() if d.output}
    assert loop.pages.in_use == 0
    return done


def test_a_step_is_submitted_before_the_last_one_has_run():
    """The host knows none of the tokens that the second step decodes, and asks for them by their row."""
    loop, engine = serve()
    assert isinstance(engine, LateEngine)
    for prompt in (PROMPT, PROMPT[:3]):
        loop.add_request(prompt, GREEDY)
    assert loop.step() == []
    assert (engine.submitted, len(engine.batches)) == (1, 0)
    assert [d.token_ids for d in loop.step()] == [
        (SAID[0],),
        tuple(oracle(POOLS, PROMPT[:3], 1, SamplingRow(GREEDY, 0, 0))),
    ]
    assert (engine.submitted, len(engine.batches)) == (2, 1)
    loop.step()
    assert engine.batches[-1].late.tolist() == [0, 1]


def test_no_step_is_wasted_on_a_request_that_ends_by_length():
    loop, engine = serve()
    loop.add_request(PROMPT, GREEDY, id="it")
    assert drain(loop) == {"it": (SAID, "length")}
    assert len(engine.batches) == loop.stats.steps == 12


def test_the_token_after_a_stop_token_is_dropped():
    """One more was computed; nobody hears of it, and the next request gets the pages."""
    at = next(i for i in range(3, 12) if SAID[i] not in SAID[:i])
    loop, engine = serve(eos=[SAID[at]])
    loop.add_request(PROMPT, GREEDY, id="it")
    assert drain(loop) == {"it": (SAID[: at + 1], "stop")}
    assert (len(engine.batches), loop.stats.steps, loop.stats.generated) == (at + 2, at + 2, at + 1)
    loop.add_request(PROMPT[::-1], GREEDY, id="next")
    said = oracle(POOLS, PROMPT[::-1], 12, SamplingRow(GREEDY, 0, 0))
    stop = next((i + 1 for i, token in enumerate(said) if token == SAID[at]), 12)
    assert drain(loop)["next"][0] == said[:stop]


def test_penalties_wait_for_the_tokens_they_count():
    """As long as such a request runs, each step is taken before the next is built."""
    loop, engine = serve()
    assert isinstance(engine, LateEngine)
    params = SamplingParams(max_tokens=6, temperature=0, presence_penalty=1.5)
    loop.add_request(PROMPT, params, id="it")
    loop.add_request(PROMPT[:5], GREEDY)
    done = drain(loop)
    assert done["it"][0] == oracle(POOLS, PROMPT, 6, SamplingRow(params, 0, 0))
    waited = [bool((batch.late >= 0).any()) for batch in engine.batches]
    assert waited == [False] * 6 + [False] + [True] * 5


@engines
def test_broken_logits_end_their_request_alone(make):
    """Nothing that it stored is shared afterwards."""
    loop, engine = serve(make)
    engine.broken = frozenset({SAID[4]})
    assert SAID[4] not in [*SAID[:4], *PROMPT]
    other = [3, 3]
    told = oracle(POOLS, other, 12, SamplingRow(GREEDY, 0, 0))
    assert SAID[4] not in told
    for name, prompt in (("broken", PROMPT), ("other", other)):
        loop.add_request(prompt, GREEDY, id=name)
    assert drain(loop) == {"broken": (SAID[:5], "error"), "other": (told, "length")}
    assert loop.pages.hit(loop._request(PROMPT, GREEDY).prefix, 8) == 0


@engines
def test_a_step_that_fails_ends_its_requests_only(make):
    """The one that waits for a slot comes next, and says what it should."""
    loop, engine = serve(make)
    for i in range(5):
        loop.add_request([i, *PROMPT], GREEDY, id=str(i))
    engine.fail_at[3] = RuntimeError("lost")
    with pytest.raises(RuntimeError, match="lost"):
        drain(loop)
    done = drain(loop)
    assert [done[str(i)][1] for i in range(5)] == ["error"] * 4 + ["length"]
    assert done["4"][0] == oracle(POOLS, [4, *PROMPT], 12, SamplingRow(GREEDY, 0, 0))


def test_whoever_shares_what_a_failed_step_stored_fails_with_it():
    """The second joins with the pages of the first before anybody knows that they hold noise."""
    loop, engine = serve()
    loop.add_request(PROMPT, GREEDY, id="first")
    engine.fail_at[1] = RuntimeError("lost")
    loop.step()
    loop.add_request(PROMPT, GREEDY, id="second")
    with pytest.raises(RuntimeError, match="lost"):
        loop.step()
    assert loop.unfinished == 0
    loop.add_request(PROMPT, GREEDY, id="third")
    done = drain(loop)
    assert [done[name][1] for name in ("first", "second", "third")] == ["error", "error", "length"]
    assert done["third"][0] == SAID


def test_a_step_that_is_refused_ends_its_requests_with_what_they_have():
    loop, engine = serve()
    assert isinstance(engine, LateEngine)
    loop.add_request(PROMPT, GREEDY, id="it")
    engine.refuse_at[4] = RuntimeError("no memory")
    with pytest.raises(RuntimeError, match="no memory"):
        drain(loop)
    assert drain(loop) == {"it": (SAID[:3], "error")}


def test_a_preempted_request_gets_the_token_it_waits_for():
    """An urgent request takes its pages while the step that samples its next token still runs."""
    engine = LateEngine((Pool("full", None, 4, 0, 8),), 32, 4, 60)
    loop = Loop(engine)
    loop.add_request(PROMPT, GREEDY, id="plain", priority=1)
    for _ in range(3):
        loop.step()
    (plain,) = loop.scheduler.running
    loop.add_request(list(range(24)), GREEDY, id="urgent")
    loop.step()  # it takes all that is left
    loop.step()
    assert plain.preemptions == 1
    assert not plain.awaiting
    done = drain(loop)
    assert done["plain"] == (SAID, "length")
    assert done["urgent"][0] == oracle(POOLS, list(range(24)), 9, SamplingRow(GREEDY, 0, 0))


def test_a_cancelled_request_leaves_in_flight():
    loop, _ = serve()
    loop.add_request(PROMPT, GREEDY, id="it")
    for _ in range(3):
        loop.step()
    output = loop.cancel("it")
    assert output is not None
    assert output.token_ids == SAID[:2]
    loop.add_request(PROMPT, GREEDY, id="it")  # the step in flight is of another request of that name
    assert drain(loop)["it"] == (SAID, "length")
