"""kv-plan sets page sizes and ranges; the plan says what fits."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.ir.cost import count_weights, plan, step_cost
from irloom.ir.errors import IRError
from irloom.ir.parse import parse
from irloom.ir.plan import CacheGroup, KVPlan, is_linear, kv_plan
from irloom.ir.show import show
from irloom.passes import run_pipeline

TWO_LAYERS = """# irloom 1
T: dim[1, 8192]; S: dim[1, 256]

def sliding(x: f32[T, 4, 32], seqs: seqs[T, S], w: f32[128, 128] = weight("l.{i}.w")):
    h = reshape(x, dims=(T, 128))
    u = linear(h, w)
    q = reshape(u, dims=(T, 4, 32))
    k, v, r = split(q, dim=1, sizes=(1, 1, 2))
    a = attention(q, k, v, seqs, scale=0.5, window=8)
    return a

def full(x: f32[T, 4, 32], seqs: seqs[T, S]):
    k, v, r = split(x, dim=1, sizes=(1, 1, 2))
    a = attention(x, k, v, seqs, scale=0.5)
    return a

def main(ids: i32[T], seqs: seqs[T, S], embed: f32[100, 128] = weight("embed")):
    e = embedding(ids, embed)
    x = reshape(e, dims=(T, 4, 32))
    for i in range(0, 6, 3):
        x = sliding[i](x, seqs)
        x = sliding[i + 1](x, seqs)
        x = full[i + 2](x, seqs)
    h = reshape(x, dims=(T, 128))
    logits = linear(h, embed)
    return logits
"""


@pytest.fixture(scope="module")
def program():
    return run_pipeline(parse(TWO_LAYERS), "kv-cache")[0]


def test_caches_are_grouped_by_window(program):
    full, window = kv_plan(program).groups
    assert (full.name, window.name) == ("full", "window 8")
    assert list(full.caches) == ["kv[2]", "kv[5]"]
    assert list(window.caches) == ["kv[0]", "kv[1]", "kv[3]", "kv[4]"]
    assert full.token_bytes == 2 * 2 * 32 * 4
    assert full.page_bytes == 16 * full.token_bytes


def test_a_window_bounds_what_a_sequence_holds(program):
    full, window = kv_plan(program).groups
    assert full.pages(1000) == 63
    assert window.pages(1000) == 2  # 8 tokens may lie on two pages
    assert window.pages(10) == 1
    assert window.pages(1000, tokens=33) == 4  # what 32 more tokens of a step read before


def test_the_table_is_plain_text(program):
    assert kv_plan(program).table((1000, 2000)).splitlines() == [
        "pool      page  caches          each  bytes/page  bytes/token  1000 tokens  2000 tokens",
        "full        16       2  2 f32[1, 32]     8.0 KiB        512 B    504.0 KiB   1000.0 KiB",
        "window 8    16       4  2 f32[1, 32]    16.0 KiB      1.0 KiB     32.0 KiB     32.0 KiB",
        "all                  6                                1.5 KiB    536.0 KiB      1.0 MiB",
    ]


def test_the_plan_is_json(program):
    assert json.loads(json.dumps(plan(program).to_json()))["kv"]["pools"][1]["window"] == 8


def test_page_size_and_ranges_follow_from_the_options(program):
    m, record = run_pipeline(program, "kv-plan(page=32, memory='4MiB', context=1000, max_tokens=64)")
    assert "paged[f32, 32, 8][P8, 1, 32]" in show(m)
    assert "paged[f32, 16" not in show(m)
    full, window = kv_plan(m).groups
    count = m.dims["S"][1]
    assert m.dims == {
        "T": (1, 64),
        "S": (1, count),
        "P8": (1, window.pages(1000, count, 64)),
        "P": (1, full.pages(1000, count, 64)),
    }
    assert kv_plan(m).bytes(1000, count, 64) <= 4 * 2**20 < kv_plan(m).bytes(1000, count + 1, 64)
    assert len(record.steps[0].changes) == 2


def test_without_memory_every_sequence_gets_its_pages(program):
    m, _ = run_pipeline(program, "kv-plan(context=160, max_seqs=7)")
    assert m.dims["S"] == (1, 7)
    assert m.dims["P"] == (1, 70)


def test_a_linear_layout_has_one_slot_a_sequence_in_one_pool(program):
    """A window is kept whole: all caches count the same slots, as long as the longest sequence."""
    m, record = run_pipeline(program, "kv-plan(layout='linear', context=1000, max_seqs=7)")
    assert {str(t) for t in kv_plan(m).groups[0].caches.values()} == {"paged[f32, 1000][P, 1, 32]"}
    assert m.dims == {"T": (1, 8192), "S": (1, 7), "P": (1, 7)}
    assert [p.split(": ")[1] for p in record.steps[0].changes.places] == [
        "6 caches, 1.5 MiB a sequence, 7 slots, 10.3 MiB"
    ]
    assert kv_plan(m).table((10, 1000)).splitlines() == [
        "pool  page  caches          each  bytes/page  bytes/token  10 tokens  1000 tokens",
        "full  1000       6  2 f32[1, 32]     1.5 MiB      1.5 KiB    1.5 MiB      1.5 MiB",
    ]
    assert parse(show(m)).dims == m.dims
    assert is_linear(m)
    assert not is_linear(run_pipeline(program, "kv-plan(page=1000, context=1000, max_seqs=7)")[0])


def test_states_and_strides_have_slots_too():
    """A stride divides its slot, so that one may be longer than the longest sequence."""
    m = parse("""
T: dim[1, 64]; S: dim[1, 4]; P: dim[1, 99]; Ps4: dim[1, 99]; N: dim[1, 99]

def main(
    x: f32[T, 4, 8], taps: f32[8, 4], seqs: seqs[T, S],
    a: paged[f32, 16][P, 4, 8], b: paged[f32, 64](stride=4)[Ps4, 4, 8], n: state[f32, 256][N, 8, 3],
):
    a1 = kv_append(a, x, x, seqs)
    b1 = kv_append(b, x, x, seqs)
    h = sum(x, dim=1, keep=False)
    c, n1 = carried_causal_conv(h, taps, seqs, n)
    return c, a1, b1, n1
""")
    m, _ = run_pipeline(m, "kv-plan(layout='linear', context=50)")
    plan = kv_plan(m)
    assert [(g.name, g.page, g.window) for g in plan.groups] == [
        ("full", 50, None),
        ("stride 4", 52, None),
        ("state", 50, 2),
    ]
    assert [p.pages for p in plan.pools(50, 4)] == [4, 4, 4]
    assert is_linear(m)


def test_a_page_table_has_one_page_size():
    m = parse("""
def main(q: f32[T, 4, 8], seqs: seqs[T, S], a: paged[f32, 16][P, 4, 8], b: paged[f32, 8][P, 4, 8]):
    a1 = kv_append(a, q, q, seqs)
    b1 = kv_append(b, q, q, seqs)
    return a1, b1
""")
    with pytest.raises(IRError, match="caches a and b share a page table, but have pages of 16 and 8 tokens"):
        kv_plan(m)
    assert kv_plan(run_pipeline(m, "kv-plan(page=8)")[0]).groups[0].page == 8


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from([None, 5, 16, 40]), st.integers(1, 4)), min_size=1, max_size=3),
    st.integers(1, 200),
    st.integers(1, 64),
    st.integers(0, 2**20),
)
def test_what_fits_fits_and_no_more(groups, context, tokens, memory):
    t = kv_plan(run_pipeline(parse(TWO_LAYERS), "kv-cache")[0]).groups[0].caches["kv[2]"]
    made = tuple(
        CacheGroup("full" if w is None else f"window {w}", w, 16, {f"{i}.{j}": t for j in range(n)})
        for i, (w, n) in enumerate(groups)
    )
    p = KVPlan(made)
    count = p.fits(memory, context, tokens)
    assert count == 0 or p.bytes(context, count, tokens) <= memory
    assert p.bytes(context, count + 1, tokens) > memory
    assert sum(pool.pages * pool.page_bytes for pool in p.pools(context, count, tokens)) <= memory


def test_weights_are_counted_once(program):
    weights = count_weights(program)
    assert weights.parameters == 4 * 128 * 128 + 100 * 128  # the embedding is also the head
    assert weights.bytes == 4 * weights.parameters


def test_the_cost_of_a_decode_step(program):
    """At 100 tokens in the cache: four layers read the last eight of them, two read all."""
    cost = step_cost(program, tokens=1, seqs=1, context=100)
    linear = 4 * 128 * 128 * 2 + 128 * 100 * 2
    attention = 4 * 128 * (4 * 8 + 2 * 100)
    assert cost.flops == linear + attention
    read = 4 * (4 * 128 * 128 + 100 * 128)
    cache = 2 * 32 * 4 * (4 * 8 + 2 * 100 + 6)
    assert read + cache <= cost.bytes <= 1.1 * (read + cache) + 2**14


def test_a_prompt_attends_to_half_of_itself_on_average(program):
    whole = step_cost(program, tokens=64, seqs=1, context=64)
    alone = [step_cost(program, tokens=1, seqs=1, context=at + 1) for at in range(64)]
    assert whole.flops == pytest.approx(sum(c.flops for c in alone), rel=0.01)
    assert whole.bytes < sum(c.bytes for c in alone) / 10


def test_of_tables_a_token_reads_a_row_and_of_experts_those_it_chooses():
    text = """
def main(
    ids: i32[T],
    table: f32[100, 8] = weight("table"),
    gate: f32[4, 8] = weight("gate"),
    up: f32[4, 16, 8] = weight("up"),
    turns: f32[4] = const("turns"),
):
    x = embedding(ids, table)
    g = linear(x, gate)
    best, index = topk(g, k=2)
    y = expert_linear(x, index, up)
    return y
"""
    counted = count_weights(parse("turns = const(f32[4], 'AACAPwAAgD8AAIA/AACAPw==')\n" + text))
    assert counted.parameters == 100 * 8 + 4 * 8 + 4 * 16 * 8
    assert counted.active == 8 + 4 * 8 + 2 * 16 * 8


def test_the_table_of_the_whole_plan(program):
    rows = plan(program).table().splitlines()
    assert rows[0] == "weights: 78,336 parameters, 306.0 KiB; a token reads 78,336 of them"
    assert rows[-1].startswith("all ")


def test_the_table_says_what_is_stored_in_which_element():
    text = """
def main(x: bf16[T, 256], w: bf16[512, 256] = weight("w"), head: bf16[8, 512] = weight("head")):
    y = linear(x, w)
    z = linear(y, head)
    return z
"""
    m, _ = run_pipeline(parse(text), "quantize(fp8)")
    counted = count_weights(m)
    assert counted.elements == {"f8row": (512 * 256, 512 * 256 + 512 * 4), "bf16": (8 * 512, 8 * 512 * 2)}
    assert plan(m).table().splitlines()[1] == "         131,072 in f8row, 130.0 KiB; 4,096 in bf16, 8.0 KiB"
