"""How far apart two tensors are: each measure against numbers worked out by hand, and each shown to fail."""

import math

import pytest
import torch

from irloom.passes.report import CAP, FLOOR, SMALL, report, row_errors

INF, NAN = math.inf, math.nan


def of(want, got, **options):
    return report(torch.tensor(want), torch.tensor(got), "here", **options)


class TestMeasures:
    def test_the_largest_difference_is_absolute_and_as_a_share_of_its_row(self):
        r = of([[1.0, -4.0], [2.0, 8.0]], [[1.5, -4.0], [2.0, 9.0]])
        assert r.max_abs == 1.0
        assert r.relative == r.error == 0.125  # 0.5 of 4 and 1 of 8 are the same share
        assert r.rows == 2

    def test_the_norm_is_that_of_the_difference_over_that_of_the_output(self):
        assert of([[3.0, 4.0]], [[3.0, 4.5]]).norm == pytest.approx(0.1)

    def test_the_cosine_is_that_of_the_angle(self):
        assert of([[1.0, 0.0]], [[1.0, 1.0]]).cosine == pytest.approx(1 / math.sqrt(2))
        assert of([[1.0, 2.0]], [[-1.0, -2.0]]).cosine == pytest.approx(-1.0)
        assert of([[0.0, 0.0]], [[0.0, 0.0]]).cosine == 1.0
        assert of([[0.0, 0.0]], [[0.0, 1.0]]).cosine == 0.0

    def test_the_divergence_is_that_of_the_worst_token_in_nats(self):
        even, tilted = [0.0, 0.0], [math.log(3), 0.0]  # 1/2 and 1/2; 3/4 and 1/4
        wanted = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
        r = of([even, tilted, even], [even, tilted, tilted], logits=True)
        assert r.kl == pytest.approx(wanted)
        assert of([even], [[5.0, 5.0]], logits=True).kl == pytest.approx(0.0)  # what moves all moves nothing

    def test_top_1_is_the_share_of_tokens_with_the_same_likeliest_one(self):
        assert of([[1.0, 2.0], [2.0, 1.0]], [[1.0, 2.0], [1.0, 2.0]], logits=True).top1 == 0.5
        assert of([[1.0, 1.0]], [[0.0, 2.0]], logits=True).top1 == 1.0  # of two equal ones either will do

    def test_numbers_of_logits_are_only_for_logits(self):
        r = of([[1.0, 2.0]], [[1.0, 2.5]])
        assert (r.kl, r.top1) == (None, None)

    def test_large_tensors_are_measured_in_parts_that_add_up(self, monkeypatch):
        want = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
        got = want + 0.1 * torch.randn(9, 7, generator=torch.Generator().manual_seed(1))
        whole = report(want, got, "here", logits=True)
        monkeypatch.setattr("irloom.passes.report.BLOCK", 14)
        parts = report(want, got, "here", logits=True)
        for name in ("max_abs", "relative", "norm", "cosine", "kl", "top1"):
            assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-6)


class TestLimits:
    @pytest.mark.parametrize("dtype", FLOOR)
    def test_a_difference_within_the_floor_passes_and_twice_as_much_fails(self, dtype):
        want = torch.ones(4, 8, dtype=torch.float64)
        for factor, ok in ((0.9, True), (2.0, False)):
            got = want.clone()
            got[2, 3] += factor * FLOOR[dtype]
            r = report(want, got, "here", allowed=FLOOR[dtype])
            assert r.ok is ok
            assert r.error == pytest.approx(factor * FLOOR[dtype], rel=1e-6)

    def test_no_element_allows_more_than_its_cap_and_coarser_ones_allow_more(self):
        order = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        assert all(FLOOR[d] < CAP[d] for d in order)
        assert sorted(order, key=FLOOR.__getitem__) == sorted(order, key=CAP.__getitem__) == list(order)

    def test_one_wrong_row_of_many_is_seen(self):
        want = torch.ones(1000, 8)
        got = want.clone()
        got[777] = -1
        assert not report(want, got, "here").ok

    def test_a_small_row_counts_by_itself_but_not_one_that_is_next_to_nothing(self):
        want = torch.tensor([[10.0], [2 * SMALL * 10], [1e-6]]).repeat(1, 4)
        errors = row_errors(want, want + 1e-3)
        torch.testing.assert_close(
            errors, torch.tensor([1e-4, 5e-4, 1e-3], dtype=torch.float64), rtol=1e-3, atol=0
        )

    def test_with_a_budget_the_norm_counts(self):
        far = of([[3.0, 4.0]], [[3.0, 4.5]], budget=0.11)
        assert far.ok and far.error == far.norm and far.allowed == 0.11
        assert not of([[3.0, 4.0]], [[3.0, 4.5]], budget=0.09).ok

    def test_integers_and_bools_are_equal_or_wrong(self):
        assert of([1, 2], [1, 2]).ok and of([True], [True]).ok
        assert not of([1, 2], [1, 3]).ok and not of([1, 2], [1, 3], budget=0.5).ok
        assert not of([True], [False]).ok


class TestNumbersThatAreNone:
    def test_nan_and_infinity_in_the_same_place_are_the_same(self):
        assert of([[NAN, -INF, 1.0]], [[NAN, -INF, 1.0]]).ok

    @pytest.mark.parametrize(("want", "got"), [(1.0, NAN), (NAN, 1.0), (1.0, INF), (INF, -INF), (NAN, INF)])
    def test_on_one_side_only_they_are_wrong_whatever_is_allowed(self, want, got):
        r = of([[want, 1.0]], [[got, 1.0]], allowed=1e9)
        assert r.error == INF and not r.ok
        assert not of([[want, 1.0]], [[got, 1.0]], budget=1e9).ok

    def test_nothing_but_nan_says_nothing(self):
        assert not of([[NAN, NAN]], [[NAN, NAN]]).ok

    def test_outputs_of_zeros_are_measured_as_they_are(self):
        assert of([[0.0]], [[1e-6]]).relative == pytest.approx(1e-6)
        assert not of([[0.0]], [[1e-3]]).ok

    def test_no_rows_have_no_difference(self):
        r = report(torch.empty(0, 4), torch.empty(0, 4), "here", logits=True)
        assert r.ok and r.kl is None and r.rows == 0
