"""The loop from prompt to text, on an engine that computes from its pages."""

from __future__ import annotations

import numpy as np
import pytest

from irloom.ir.errors import RequestError
from irloom.ir.plan import Pool
from irloom.runtime.core import SamplingRow
from irloom.runtime.loop import Loop
from irloom.runtime.request import FinishReason, SamplingParams

from .engine import VOCAB, HashEngine, LateEngine, oracle

WINDOWS = (None, 6)
rng = np.random.default_rng(7)
PROMPTS = [rng.integers(0, VOCAB, n).tolist() for n in (1, 3, 4, 5, 17, 33, 40, 9)]


def make(
    pages=(64, 64), page=4, budget=64, seqs=8, context=128, windows=WINDOWS, eos=(), engine=HashEngine
) -> Loop:
    return Loop(engine(pools(windows, page, pages), budget, seqs, context), eos=eos)


def pools(windows, page, pages) -> tuple[Pool, ...]:
    return tuple(Pool(f"window {w}", w, page, 0, n) for w, n in zip(windows, pages, strict=True))


def run(loop: Loop) -> dict[str, list[int]]:
    """Step until nothing is left, checking every invariant after every step."""
    done = {}
    while loop.unfinished:
        for delta in loop.step():
            if delta.output is not None:
                done[delta.id] = delta.output.token_ids
        loop.check()
    assert loop.pages.in_use == 0
    return done


def engine(loop: Loop) -> HashEngine:
    assert isinstance(loop.engine, HashEngine)
    return loop.engine


GREEDY = SamplingParams(max_tokens=20, temperature=0.0)
MIXED = [
    GREEDY,
    SamplingParams(max_tokens=20, temperature=0.9, seed=11),
    SamplingParams(max_tokens=20, temperature=1.5, top_k=9, seed=-3),
    SamplingParams(max_tokens=20, temperature=0.7, top_p=0.8, seed=5, presence_penalty=0.5),
    SamplingParams(max_tokens=20, min_p=0.05, seed=2**64 - 1, repetition_penalty=1.3),
    SamplingParams(max_tokens=20, seed=0, frequency_penalty=0.4, logit_bias={3: 2.5, 9: -100}),
    GREEDY,
    SamplingParams(max_tokens=20, seed=9, logprobs=3),
]
MODEL = pools(WINDOWS, 4, (64, 64))
EXPECTED = [
    oracle(MODEL, prompt, 20, SamplingRow(params, params.seed or 0, 0))
    for prompt, params in zip(PROMPTS, MIXED, strict=True)
]


@pytest.mark.parametrize(
    "settings",
    [
        {"seqs": 1},
        {},
        {"budget": 8},
        {"budget": 3, "seqs": 3},
        {"pages": (16, 12)},
        {"pages": (15, 3), "budget": 16},
        {"page": 1, "pages": (100, 30)},
        {"page": 16, "pages": (6, 4)},
    ],
    ids=["alone", "batched", "chunked", "tiny chunks", "preempted", "starved", "page 1", "page 16"],
)
@pytest.mark.parametrize("engine", [HashEngine, LateEngine])
def test_text_does_not_depend_on_company(settings, engine):
    """Greedy and seeded requests say the same alone, batched, chunked, preempted, and a step late."""
    loop = make(**settings, engine=engine)
    outputs = loop.generate(PROMPTS, MIXED)
    assert [o.token_ids for o in outputs] == EXPECTED
    assert loop.pages.in_use == 0
    loop.check()


def test_few_pages_really_preempt():
    loop = make(pages=(16, 12))
    loop.generate(PROMPTS, MIXED)
    assert loop.scheduler.preemptions > 0


def test_prefix_hits_change_nothing():
    """The second time all whole pages of the prompts but their last token come from the cache."""
    loop = make(pages=(300, 300))
    assert [o.token_ids for o in loop.generate(PROMPTS, MIXED)] == EXPECTED
    outputs = loop.generate(PROMPTS, MIXED)
    assert [o.token_ids for o in outputs] == EXPECTED
    assert [o.cached_tokens for o in outputs] == [(len(p) - 1) // 4 * 4 for p in PROMPTS]
    assert [o.cached_tokens for o in loop.generate([PROMPTS[6] + EXPECTED[6]], GREEDY)] == [56]


def test_salts_do_not_share():
    loop = make()
    for salt, cached in (("a", 0), ("b", 0), ("a", 36)):
        loop.add_request(PROMPTS[6], GREEDY, cache_salt=salt)
        (output,) = [d.output for _ in range(30) for d in loop.step() if d.output]
        assert (output.cached_tokens, output.token_ids) == (cached, EXPECTED[6])


def test_requests_join_and_leave_in_flight():
    loop, prompts = make(budget=16, seqs=4), dict(enumerate(PROMPTS))
    done: dict[str, list[int]] = {}
    for i, prompt in prompts.items():
        loop.add_request(prompt, MIXED[i], id=str(i))
        for _ in range(3):
            done |= {d.id: d.output.token_ids for d in loop.step() if d.output}
            loop.check()
    done |= run(loop)
    assert [done[str(i)] for i in prompts] == EXPECTED


def test_a_step_mixes_prefill_and_decode():
    loop = make(budget=8, seqs=4)
    loop.add_request(PROMPTS[1], GREEDY)
    loop.step()
    loop.add_request(PROMPTS[6], GREEDY)
    loop.step()
    assert np.diff(engine(loop).batches[-1].starts).tolist() == [1, 7]


def test_streams_may_be_read_by_turns():
    loop = make()
    streams = [loop.stream(p, params) for p, params in zip(PROMPTS[:3], MIXED[:3], strict=True)]
    turns = list(zip(*streams, strict=True))
    for i in range(3):
        assert [t for turn in turns for t in turn[i].token_ids] == EXPECTED[i]
        assert turns[-1][i].output.finish_reason == "length"
    assert loop.stats.steps == 22  # each joins one step after the one before


def test_leaving_a_stream_frees_its_pages():
    loop = make()
    for n, _ in enumerate(loop.stream(PROMPTS[6], GREEDY)):
        if n == 3:
            break
    assert (loop.unfinished, loop.pages.in_use) == (0, 0)
    loop.stream(PROMPTS[6], GREEDY)  # never read: never queued
    assert loop.unfinished == 0
    loop.check()


def test_cancel_waiting_and_running():
    loop = make(seqs=1)
    first, second = loop.add_request(PROMPTS[4], GREEDY), loop.add_request(PROMPTS[5], GREEDY)
    loop.step()
    loop.step()
    waiting, output = loop.cancel(second), loop.cancel(first)
    assert waiting is not None
    assert waiting.finish_reason is FinishReason.CANCELLED
    assert output is not None
    assert output.token_ids == oracle(MODEL, PROMPTS[4], 2, SamplingRow(GREEDY, 0, 0))
    assert output.finish_reason == "cancelled"
    assert loop.cancel(first) is None
    assert [d.output.id for d in loop.step() if d.output] == [second, first]
    assert (loop.unfinished, loop.pages.in_use) == (0, 0)
    loop.check()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("device lost")])
def test_a_broken_step_frees_everything_and_the_loop_goes_on(error):
    loop = make(pages=(16, 12))
    other = loop.add_request(PROMPTS[5], GREEDY)
    engine(loop).fail_at = {5: error}
    with pytest.raises(type(error)):
        loop.generate(PROMPTS, MIXED)
    loop.check()
    assert (loop.unfinished, loop.pages.in_use) == (0, 0)
    reason = "cancelled" if isinstance(error, KeyboardInterrupt) else "error"
    assert [(d.id, d.output.finish_reason) for d in loop.step() if d.output] == [(other, reason)]
    assert [o.token_ids for o in loop.generate(PROMPTS, MIXED)] == EXPECTED


def test_interrupt_in_the_reader_of_a_stream():
    loop = make()

    def read():
        for _ in loop.stream(PROMPTS[6], GREEDY):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read()
    assert (loop.unfinished, loop.pages.in_use) == (0, 0)


def test_eos_and_stop_tokens():
    """EOS ends a request without a reason of its own; a stop token names itself; min_tokens puts both off."""
    tokens = EXPECTED[6]
    at = next(i for i in range(3, 20) if tokens[i] not in tokens[:i])
    eos = make(eos=[tokens[at]])
    (output,) = eos.generate([PROMPTS[6]], GREEDY)
    assert (output.token_ids, output.finish_reason, output.stop_reason) == (tokens[: at + 1], "stop", None)
    ignore = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    assert eos.generate([PROMPTS[6]], ignore)[0].token_ids == tokens
    later = SamplingParams(max_tokens=20, temperature=0, min_tokens=at + 2)
    (output,) = eos.generate([PROMPTS[6]], later)
    assert output.token_ids[:at] == tokens[:at]
    assert tokens[at] not in output.token_ids[: at + 2]
    stop = SamplingParams(max_tokens=20, temperature=0, stop_token_ids=[tokens[at]])
    (output,) = make().generate([PROMPTS[6]], stop)
    assert (output.token_ids, output.stop_reason) == (tokens[: at + 1], tokens[at])


def test_generation_ends_when_the_pages_are_full():
    """The last token needs no page: a request of n stored tokens ends with n + 1 known."""
    for loop, room in ((make(pages=(5, 64)), 20), (make(context=30), 30), (make(pages=(64, 2)), 8)):
        assert loop.pages.capacity == room
        (output,) = loop.generate([PROMPTS[1]], SamplingParams(max_tokens=None, temperature=0))
        assert (len(output.token_ids), output.finish_reason) == (room + 1 - 3, "length")
        assert len(loop.generate([[1] * room], SamplingParams(max_tokens=None))[0].token_ids) == 1


def test_a_window_needs_few_pages_however_long_the_text():
    """Pages behind the window are given back while the sequence grows."""
    loop = make(pages=(64, 3), context=200)
    (output,) = loop.generate([PROMPTS[6]], SamplingParams(max_tokens=100, temperature=0))
    assert output.token_ids == oracle(MODEL, PROMPTS[6], 100, SamplingRow(GREEDY, 0, 0))
    assert (engine(loop).batches[-1].tables[1] >= 0).sum() <= 3


def test_logprobs_come_with_every_token():
    (output,) = make().generate([PROMPTS[7]], MIXED[7])
    assert [s.token for s in output.logprobs or ()] == output.token_ids
    assert all(len(s.top) == 3 and (s.logprob or 0) <= s.top[0][1] <= 0 for s in output.logprobs or ())


def test_unseeded_requests_differ():
    params = SamplingParams(max_tokens=20, temperature=2.0)
    outputs = make().generate([PROMPTS[4]] * 4, params)
    assert len({tuple(o.token_ids) for o in outputs}) == 4


def test_priority_goes_first_but_not_for_ever():
    """One level of priority is worth a thousand steps of waiting."""
    loop = make(seqs=1)
    params = SamplingParams(max_tokens=5, temperature=0)
    loop.add_request(PROMPTS[5], params, id="first")
    loop.step()
    loop.add_request(PROMPTS[4], params, id="plain")
    loop.add_request(PROMPTS[1], params, id="urgent", priority=-1)
    assert list(run(loop)) == ["urgent", "first", "plain"]
    loop.add_request(PROMPTS[4], params, id="late", priority=1)
    loop.scheduler.clock += 1000
    loop.add_request(PROMPTS[4], params, id="new", priority=0)
    assert list(run(loop)) == ["late", "new"]


def test_bad_requests_are_refused_with_both_facts():
    loop = make(pages=(5, 64))
    for prompt, params, message in (
        ([], None, "prompt: 0 tokens, but a request needs 1 to 20"),
        ([1] * 21, None, "prompt: 21 tokens, but the engine's pages hold 20"),
        ([1, VOCAB], None, f"prompt: token {VOCAB} is not in the vocabulary of {VOCAB}"),
        ([-1], None, f"prompt: token -1 is not in the vocabulary of {VOCAB}"),
        ("text", None, "prompt: text needs a tokenizer"),
        ([1], SamplingParams(stop="x"), "stop: strings need a tokenizer"),
        (
            [1],
            SamplingParams(stop_token_ids=[99]),
            f"stop_token_ids: token 99 is not in the vocabulary of {VOCAB}",
        ),
        (
            [1],
            SamplingParams(logit_bias={99: 1.0}),
            f"logit_bias: token 99 is not in the vocabulary of {VOCAB}",
        ),
    ):
        with pytest.raises(RequestError) as caught:
            loop.generate([[1, 2], prompt], params)
        assert caught.value.message == message
        with pytest.raises(RequestError):
            loop.stream(prompt, params)
    loop.add_request([1], id="a")
    with pytest.raises(RequestError, match="id: 'a' is being served already"):
        loop.add_request([1], id="a")
    with pytest.raises(RequestError, match="2 prompts but 1 sampling parameters"):
        loop.generate([[1], [2]], [GREEDY])
    run(loop)
