"""Engines that hold states beside pages: a written hybrid model answers alike however it is served."""

import re
from pathlib import Path
from typing import Any

import pytest

from irloom.backends.artifact import EngineReader
from irloom.backends.core import Limits
from irloom.backends.pools import pools
from irloom.ir.checkpoint import RandomCheckpoint
from irloom.ir.errors import RequestError

from .written import EVERY, GREEDY, PAGE, TARGETS, Written, answers, serve

HYBRID = """# irloom 1
T: dim[1, 8192]; S: dim[1, 256]

def space(
    x: f32[T, 16],
    seqs: seqs[T, S],
    ln: f32[16] = weight("l.{i}.ln"),
    up: f32[52, 16] = weight("l.{i}.up"),
    taps: f32[48, 4] = weight("l.{i}.taps"),
    rate: f32[4] = weight("l.{i}.rate"),
    down: f32[16, 16] = weight("l.{i}.down"),
):
    h = rms_norm(x, ln)
    u = linear(h, up)
    mixed, steps = split(u, dim=1, sizes=(48, 4))
    c = causal_conv(mixed, taps, seqs)
    act = silu(c)
    v, w, r = split(act, dim=1, sizes=(16, 16, 16))
    vh = reshape(v, dims=(T, 4, 4))
    wh = reshape(w, dims=(T, 2, 8))
    rh = reshape(r, dims=(T, 2, 8))
    dt = sigmoid(steps)
    fast = exp(rate)
    a = neg(fast)
    y = ssd_scan(vh, dt, a, wh, rh, seqs)
    flat = reshape(y, dims=(T, 16))
    d = linear(flat, down)
    out = add(x, d)
    return out

def delta(
    x: f32[T, 16],
    seqs: seqs[T, S],
    ln: f32[16] = weight("l.{i}.ln"),
    up: f32[50, 16] = weight("l.{i}.delta"),
    down: f32[16, 16] = weight("l.{i}.down"),
):
    h = rms_norm(x, ln)
    before = token_shift(h, seqs)
    both = add(h, before)
    u = linear(both, up)
    q, k, v, keep, beta = split(u, dim=1, sizes=(16, 16, 14, 2, 2))
    qh = reshape(q, dims=(T, 2, 8))
    kh = reshape(k, dims=(T, 2, 8))
    scaled = mul(kh, 0.3)
    vh = reshape(v, dims=(T, 2, 7))
    sharp = sigmoid(keep)
    fall = neg(sharp)
    decay = reshape(fall, dims=(T, 2, 1))
    b = sigmoid(beta)
    y = gated_delta(qh, scaled, vh, decay, b, seqs)
    flat = reshape(y, dims=(T, 14))
    wide = concat(flat, beta, dim=1)
    d = linear(wide, down)
    out = add(x, d)
    return out

def attend(
    x: f32[T, 16],
    seqs: seqs[T, S],
    ln: f32[16] = weight("l.{i}.ln"),
    up: f32[32, 16] = weight("l.{i}.qkv"),
    down: f32[16, 16] = weight("l.{i}.down"),
):
    h = rms_norm(x, ln)
    u = linear(h, up)
    q, k, v = split(u, dim=1, sizes=(16, 8, 8))
    qh = reshape(q, dims=(T, 2, 8))
    kh = reshape(k, dims=(T, 1, 8))
    vh = reshape(v, dims=(T, 1, 8))
    a = attention(qh, kh, vh, seqs, scale=0.35)
    flat = reshape(a, dims=(T, 16))
    d = linear(flat, down)
    out = add(x, d)
    return out

def main(ids: i32[T], seqs: seqs[T, S], embed: f32[40, 16] = weight("embed"), ln: f32[16] = weight("l.6.ln")):
    x = embedding(ids, embed)
    for i in range(0, 6, 3):
        x = space[i](x, seqs)
        x = delta[i + 1](x, seqs)
        x = attend[i + 2](x, seqs)
    h = rms_norm(x, ln)
    last = last_rows(h, seqs)
    logits = linear(last, embed)
    return logits
"""
LAYER = {
    "ln": (16,),
    "up": (52, 16),
    "taps": (48, 4),
    "rate": (4,),
    "down": (16, 16),
    "delta": (50, 16),
    "qkv": (32, 16),
}
WEIGHTS = {"embed": (40, 16), **{f"l.{i}.{n}": d for i in range(7) for n, d in LAYER.items()}}
MODEL = Written(HYBRID, RandomCheckpoint(3, WEIGHTS))
PROMPTS = [[5], [1, 2, 3], list(range(8)), [7] * 9, [(3 * i) % 40 for i in range(37)], [9, 8] * 12]


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return [MODEL.alone(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module", params=TARGETS)
def engine(request, tmp_path_factory) -> Path:
    return MODEL.build(request.param, tmp_path_factory.mktemp("engine") / "engine")


STATE = 2 * 4 * (48 * 3 + 4 * 4 * 8 + 16 + 2 * 8 * 7)  # bytes of the states of one sequence
PAGES = 2 * 4 * (2 * 8) * PAGE  # and of one page


def test_answers_are_those_of_the_plain_program(engine, expected):
    assert answers(serve(engine), PROMPTS) == expected


@pytest.mark.parametrize("limits", [{"max_seqs": 1}, {"max_tokens": 7}, {"max_tokens": 3, "max_seqs": 3}])
def test_answers_do_not_depend_on_chunks_or_company(engine, expected, limits):
    assert answers(serve(engine, **limits), PROMPTS) == expected


def test_few_slots_and_pages_preempt_and_resume(engine, expected):
    memory = 2 * STATE + 24 * PAGES + 2 * STATE + 6 * PAGES
    loop = serve(engine, memory=memory, max_seqs=5)
    for i, prompt in enumerate(PROMPTS):
        loop.add_request(prompt, GREEDY, id=str(i), priority=len(PROMPTS) - i)
        loop.step()
    done = {}
    while loop.unfinished:
        done |= {d.id: d.output.token_ids for d in loop.step() if d.output is not None}
        loop.check()
    assert [done[str(i)] for i in range(len(PROMPTS))] == expected
    assert loop.scheduler.preemptions > 0


def test_prefixes_go_on_from_snapshots(engine, expected):
    """The second time from the last snapshot before the end; what was generated counts, too."""
    loop = serve(engine)
    assert answers(loop, PROMPTS) == expected
    outputs = loop.generate(PROMPTS, GREEDY)
    assert [o.token_ids for o in outputs] == expected
    assert [o.cached_tokens for o in outputs] == [(len(p) - 1) // EVERY * EVERY for p in PROMPTS]
    (longer,) = loop.generate([PROMPTS[4] + expected[4][:10]], GREEDY)
    assert longer.cached_tokens == 40
    assert longer.token_ids[:10] == expected[4][10:]


def test_states_stay_where_they_are(engine):
    """No step copies a pool: states are renewed in the tensors they were made in."""
    loop = serve(engine)
    own: Any = loop.engine
    held = own.caches["kv"] if hasattr(own, "caches") else own.runner._names["kv"]

    def addresses() -> list[int]:
        values = [getattr(cache, "value", cache) for cache in held]
        return [v.states.data_ptr() if hasattr(v, "states") else v.k.data_ptr() for v in values]

    before = addresses()
    loop.generate(PROMPTS[:2], GREEDY)
    assert addresses() == before


@pytest.mark.skipif("cpu" not in TARGETS, reason="needs a C++ compiler")
def test_recurrent_ops_are_kernels_on_the_cpu():
    """Rates, which no token changes, are weights: nothing is left to torch."""
    from irloom.backends.cpu.lower import lower

    program = lower(MODEL.planned("cpu"))
    assert not program.fallbacks
    calls = set(re.findall(r"carried_\w+", program.text))
    names = ["causal_conv", "ssd_scan", "token_shift", "gated_delta"]
    assert calls == {f"carried_{name}" for name in names}


def test_the_plan_says_what_a_sequence_costs(engine):
    caches = EngineReader(engine).read_json("plan.json")["caches"]
    assert (caches["token_bytes"], caches["state_bytes"]) == (PAGES / PAGE, STATE)
    state = caches["pools"][1]
    assert (state["pool"], state["page"], state["page_bytes"]) == ("state", EVERY, STATE)
    assert f"state[f32, {EVERY}][N, 4, 4, 8]" in state["caches"].values()


def test_pools_have_two_slots_a_sequence_and_snapshots():
    """Memory for one sequence gives two slots, for all four each; between them it is shared in proportion."""
    m = MODEL.planned("cpu")
    least = 2 * STATE + 24 * PAGES
    full, state = pools(m, Limits(memory=least, max_seqs=3, max_tokens=16), 96)
    assert (state.name, state.page, state.window, state.cut) == ("state", EVERY, 2, True)
    assert (full.pages, state.pages) == (24, 2)
    assert (full.page_bytes, state.page_bytes) == (PAGES, STATE)
    assert [p.pages for p in pools(m, Limits(max_seqs=3), 96)] == [72, 12]
    most = 12 * STATE + 72 * PAGES
    half = pools(m, Limits(memory=(least + most) // 2, max_seqs=3), 96)
    assert [p.pages for p in half] == [48, 7]
    with pytest.raises(RequestError, match=f"needs {least:,}"):
        pools(m, Limits(memory=least - 1), 96)
