"""Programs on sessions: lengths from their boundaries, tolerances from their rounding, weights once."""

import pytest
import torch

from irloom.ir.parse import parse
from irloom.passes import parse_pipeline, run_pipeline
from irloom.passes.noise import coarsest
from irloom.passes.random_weights import RandomWeights
from irloom.passes.report import CAP, FLOOR
from irloom.passes.session import SHORT, Session, plan_session
from irloom.passes.shared_weights import SharedWeights
from irloom.passes.trial import Trial
from irloom.passes.verified import run_as_far, verify_passes
from tests.passes.planted import program

LAYER = """
def main(x: {elem}[T, 4, 8], seqs: seqs[T, S], w: {elem}[8] = weight("norm.weight")):
    q = rms_norm(x, w)
    k, r = split(q, dim=1, sizes=(1, 3))
    a = attention(q, k, k, seqs, scale=0.5, window={window})
    y = add(x, a)
    return y
"""


def layer(window=6, elem="f32"):
    return parse(LAYER.format(window=window, elem=elem))


def trial(*modules, session=None, **options):
    weights = SharedWeights(RandomWeights(modules[:1]), **options)
    made = Trial(session or plan_session(modules), weights)
    made.start(modules[0])
    return made


EXACT = parse_pipeline("canonicalize")[0]


class TestSessions:
    def test_every_boundary_is_crossed_by_a_prompt_and_by_decoding(self):
        m, _ = run_pipeline(layer(window=6), "kv-cache(page=4)")
        session = plan_session([m])
        for boundary in (4, 6, 8):  # a page, the window, two pages
            spans = [(past, past + n) for who in session.parts(whole=False) for _, past, n in who]
            assert any(a < boundary < b and b - a > 1 for a, b in spans) or boundary == 8
            assert any(a in (boundary - 1, boundary) and b == a + 1 for a, b in spans)

    def test_sequences_are_ragged_come_late_and_end_early(self):
        session = plan_session([layer()])
        assert len(session.lengths) == 1 + len(SHORT)
        assert min(session.lengths) == 1
        assert any(not step for step in session.steps[0]) and any(not step for step in session.steps[-1])

    def test_boundaries_that_are_too_far_are_told(self):
        session = plan_session([layer(window=4096)], most=64)
        assert session.missed == (4096,)
        assert max(session.lengths) <= 66

    def test_a_program_for_so_many_tokens_gets_so_many(self):
        m = parse("def main(x: f32[7, 4], seqs: seqs[7, 2]):\n    y = exp(x)\n    return y")
        session = plan_session([m])
        assert session.steps == ((4, 3),)
        assert trial(m).compare(m, EXACT).report.rows == 7

    def test_text_and_back(self):
        session = plan_session([layer()], seed=3)
        assert Session.read(session.text(), 3) == session


class TestSteps:
    def test_a_cache_in_steps_gives_the_rows_of_the_whole(self):
        before, after = layer(), run_pipeline(layer(), "kv-cache(page=4)")[0]
        report = trial(before, after).compare(after, EXACT).report
        assert report.ok and report.rows == sum(plan_session([before, after]).lengths)

    def test_a_cache_in_another_element_has_a_budget_for_rounding(self):
        (p,) = parse_pipeline("kv-cache(bf16, page=4)")
        before, after = layer(), run_pipeline(layer(), [p])[0]
        report = trial(before, after).compare(after, p).report
        assert report.ok and FLOOR[torch.float32] < report.error == report.norm

    def test_a_window_that_is_one_too_short_shows_in_long_sequences_only(self):
        before, wrong = layer(window=6), layer(window=5)
        short = Session(((3, 2), (1, 1), (1, 1)))
        assert trial(before, wrong, session=short).compare(wrong, EXACT).report.ok
        assert not trial(before, wrong).compare(wrong, EXACT).report.ok

    def test_what_a_cache_holds_is_compared_even_if_nothing_reads_it(self):
        head = "kv: paged[f32, 4](values=0)[P, 1, 8], k: f32[T, 1, 8], seqs: seqs[T, S]"
        text = f"def main({head}):\n    {{}}return kv1"
        append = "kv1 = kv_append(kv, {}, None, seqs)\n    "
        before = parse(text.format(append.format("k")))
        wrong = parse(text.format("n = neg(k)\n    " + append.format("n")))
        found = trial(before, wrong).compare(wrong, EXACT).report
        assert not found.ok and found.where.startswith("cache 0 keys")

    def test_rows_that_a_program_gives_no_more_are_kept_to_compare_later_ones_with(self):
        m = program("llama")
        ran = run_as_far(m, parse_pipeline("canonicalize, raise, outline, gather-logits, kv-cache"))
        found = trial(*ran.modules)
        done = verify_passes(ran, found)
        gathered, cached = (row.compared.report for row in done.rows[-2:] if row.compared)
        assert gathered.rows == len(found.session.lengths)
        assert cached.rows == sum(1 for who in found.session.parts(whole=False) for _ in who)


CHAIN = """
def main(x: {elem}[T, 64], a: {elem}[64, 64] = weight("a"), b: {elem}[64, 64] = weight("b")):
    h = linear(x, a)
    y = linear(h, b)
    {tail}
    return z
"""


def chain(elem, *tail):
    return parse(CHAIN.format(elem=elem, tail="\n    ".join(tail)))


class TestTolerances:
    """bf16 keeps 8 bits: what is allowed follows from what one bit does to this program."""

    @pytest.mark.parametrize("elem", ["f32", "bf16", "f16"])
    def test_sums_in_another_order_are_within_it_and_a_wrong_sign_is_not(self, elem):
        one = chain(elem, "s = add(y, x)", "z = add(s, h)")
        other = chain(elem, "s = add(x, h)", "z = add(y, s)")
        wrong = chain(elem, "s = sub(x, h)", "z = add(y, s)")
        dtype = coarsest(one)
        assert trial(one, other).compare(other, EXACT).report.ok
        bad = trial(one, wrong).compare(wrong, EXACT).report
        assert not bad.ok and FLOOR[dtype] <= bad.allowed <= CAP[dtype]

    def test_logits_in_f32_of_a_program_in_bf16_are_allowed_what_bf16_does(self):
        last = "z = cast(t, to=f32)"
        one = chain("bf16", "s = add(y, x)", "t = add(s, h)", last)
        other = chain("bf16", "s = add(x, h)", "t = add(y, s)", last)
        found = trial(one, other).compare(other, EXACT).report
        assert found.error > FLOOR[torch.float32] and found.ok

    def test_rows_that_rounding_turns_are_left_out_and_counted(self):
        tail = "c = gt(s, 2.0)", "n = neg(s)", "z = where(c, s, n)"
        one = chain("bf16", "t = add(y, x)", "s = add(t, h)", *tail)
        other = chain("bf16", "t = add(x, h)", "s = add(y, t)", *tail)
        found = trial(one, other, session=Session(((600,),))).compare(other, EXACT).report
        assert found.ok and 0 < found.unstable < 300

    def test_a_program_that_rounding_turns_everywhere_is_not_called_right(self):
        tail = "u = mul(s, 1e30)", "v = sin(u)", "z = add(v, x)"
        one = chain("f32", "t = add(y, x)", "s = add(t, h)", *tail)
        other = chain("f32", "t = add(x, h)", "s = add(y, t)", *tail)
        found = trial(one, other).compare(other, EXACT).report
        assert not found.ok and 2 * found.unstable > found.rows


class TestWeights:
    def test_each_value_is_in_memory_once_and_goes_when_no_program_names_it(self):
        m = program("llama")
        ran = run_as_far(m, parse_pipeline("canonicalize, raise, outline, fuse-qkv"))
        weights = SharedWeights(RandomWeights([m]), limit=1 << 30)
        sizes = []
        for module in ran.modules[-2:]:
            run = Trial(Session(((2,),)), weights)
            run.start(module)
            sizes.append(weights.nbytes)
            assert weights.nbytes == sum(x.nbytes for x in weights.kept.values())
        assert sizes[0] == sizes[1]
        named = [text for text, _ in weights.kept]
        assert len([text for text in named if text.startswith("concat(")]) == 2
        assert not any(text.startswith('weight("model.layers.0.self_attn.q') for text in named)

    def test_without_memory_for_any_the_numbers_are_the_same(self):
        m = program("llama")
        ran = run_as_far(m, parse_pipeline("canonicalize, raise, outline"))
        reports = []
        for limit in (0, 1 << 30):
            found = trial(*ran.modules, limit=limit)
            assert not limit or found.weights.nbytes
            reports.append([row.compared.report for row in verify_passes(ran, found).rows if row.compared])
            assert found.weights.nbytes <= limit
        assert reports[0] == reports[1]

    def test_random_ones_show_what_a_norm_adds_under_its_root(self):
        m = program("llama")
        weights = RandomWeights([m])
        table = weights.read("model.embed_tokens.weight")
        sizes = table.square().mean(1).sqrt()
        assert sizes.min() < 0.02 < 1 < sizes.max()
        assert weights.read("model.layers.0.self_attn.o_proj.weight").std() < 0.01
