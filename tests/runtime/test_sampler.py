"""The sampler against the textbook, one row at a time in numpy."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.runtime.core import BROKEN, Sampled, SamplingRow
from irloom.runtime.request import SamplingParams
from irloom.runtime.sampler import adjust, cut, philox, pick, sample, uniforms

VOCAB = 40
vectors = st.lists(st.floats(-20, 20, width=32), min_size=VOCAB, max_size=VOCAB, unique=True).map(
    lambda x: torch.tensor(x, dtype=torch.float32)
)
tokens = st.integers(0, VOCAB - 1)
cuts = st.builds(
    SamplingParams,
    temperature=st.floats(0.1, 2),
    top_k=st.integers(0, VOCAB + 5),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 0.5),
)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def kept(scores: np.ndarray, params: SamplingParams, slack: float) -> set[int]:
    """The tokens that min-p, top-k, top-p leave; ``slack`` widens every threshold to allow for rounding."""
    x = scores.astype(np.float64)
    p = softmax(x)
    alive = p >= params.min_p * p.max() * (1 - slack)
    if params.top_k:
        order = np.argsort(-np.where(alive, x, -np.inf), kind="stable")
        alive &= np.isin(np.arange(VOCAB), order[: params.top_k])
    if params.top_p < 1:
        p = np.where(alive, p, 0) / p[alive].sum()
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        alive &= np.isin(np.arange(VOCAB), order[before < params.top_p + slack])
    return set(np.flatnonzero(alive).tolist())


def left_by(scores: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    least = cut(scores, scores.softmax(-1), [params] * len(scores))
    return torch.ones_like(scores, dtype=torch.bool) if least is None else scores >= least


@given(vectors, cuts)
@settings(max_examples=150)
def test_cuts_leave_what_the_textbook_leaves(scores, params):
    """Within rounding: no more than with thresholds a millionth wider, no less than with narrower ones."""
    left = set(left_by(scores.unsqueeze(0), params).nonzero()[:, 1].tolist())
    assert kept(scores.numpy(), params, -1e-5) <= left <= kept(scores.numpy(), params, 1e-5)
    assert int(scores.argmax()) in left


@given(st.lists(vectors, min_size=1, max_size=6), st.data())
@settings(max_examples=60)
def test_a_row_does_not_depend_on_its_batch(rows, data):
    params = [data.draw(st.one_of(cuts, st.just(SamplingParams(temperature=0, logprobs=2)))) for _ in rows]
    asked = [SamplingRow(p, data.draw(st.integers(-(2**63), 2**64 - 1)), i) for i, p in enumerate(params)]
    together = sample(torch.stack(rows), asked)
    alone = [sample(row.unsqueeze(0), [one])[0] for row, one in zip(rows, asked, strict=True)]
    assert together == alone


@given(vectors, st.lists(tokens, max_size=12), st.lists(tokens, max_size=12), st.data())
def test_penalties_and_bias(scores, prompt, output, data):
    params = SamplingParams(
        repetition_penalty=data.draw(st.floats(0.5, 2)),
        presence_penalty=data.draw(st.floats(-2, 2)),
        frequency_penalty=data.draw(st.floats(-2, 2)),
        logit_bias=data.draw(st.dictionaries(tokens, st.floats(-100, 100), max_size=3)),
    )
    banned = tuple(data.draw(st.sets(tokens, max_size=3)))
    counts = Counter(output)
    row = SamplingRow(params, 0, 0, banned, np.unique(np.array(prompt, np.int32)), counts)
    expected = scores.double().numpy().copy()
    for token, bias in params.logit_bias.items():
        expected[token] += bias
    for token in {*prompt, *output}:
        old = expected[token]
        expected[token] = old / params.repetition_penalty if old > 0 else old * params.repetition_penalty
    for token, count in counts.items():
        expected[token] -= params.presence_penalty + params.frequency_penalty * count
    for token in banned:
        expected[token] = -math.inf
    before = scores.clone()
    np.testing.assert_allclose(adjust(scores.unsqueeze(0), [row])[0].numpy(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(scores, before)


@given(vectors, st.integers(0, 10))
def test_greedy_and_logprobs(scores, n):
    (got,) = sample(scores.unsqueeze(0), [SamplingRow(SamplingParams(temperature=0, logprobs=n), 0, 0)])
    logprobs = np.log(softmax(scores.double().numpy()))
    best = np.argsort(-logprobs)[:n]
    assert got.token == int(scores.argmax())
    assert got.logprob == pytest.approx(logprobs[got.token], abs=1e-5)
    assert [t for t, _ in got.top] == best.tolist()
    np.testing.assert_allclose([p for _, p in got.top], logprobs[best], atol=1e-5, rtol=1e-5)


def test_logprobs_are_the_models_own():
    """Bias and temperature choose another token; its log-probability is that of the model."""
    scores = torch.tensor([[1.0, 2.0, 3.0]])
    params = SamplingParams(temperature=0, logit_bias={0: 50.0}, logprobs=1)
    (got,) = sample(scores, [SamplingRow(params, 0, 0)])
    assert got.token == 0
    assert got.logprob == pytest.approx(float(scores.log_softmax(-1)[0, 0]))
    assert got.top[0][0] == 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frequencies_fit_the_distribution(temperature, dtype):
    """Chi-square of 20,000 draws over 12 tokens: below the 99.99% quantile (df 11: 37.4)."""
    draws, scores = 20_000, torch.linspace(-2, 2, 12).to(dtype)
    row = SamplingParams(temperature=temperature)
    rows = [SamplingRow(row, 1234, i) for i in range(draws)]
    seen = Counter(s.token for s in sample(scores.expand(draws, 12), rows))
    expected = softmax(scores.double().numpy() / temperature) * draws
    chi2 = sum((seen[t] - e) ** 2 / e for t, e in enumerate(expected))
    assert chi2 < 37.4


def test_seeds_at_one_position_fit_too():
    """The same with 20,000 seeds at position 0, as many requests start."""
    draws, scores = 20_000, torch.linspace(-2, 2, 12)
    rows = [SamplingRow(SamplingParams(), seed, 0) for seed in range(draws)]
    seen = Counter(s.token for s in sample(scores.expand(draws, 12), rows))
    expected = softmax(scores.double().numpy()) * draws
    assert sum((seen[t] - e) ** 2 / e for t, e in enumerate(expected)) < 37.4


def test_equal_scores_stay_or_go_together():
    """Top-k 2 of 5, 5, 5, 1 keeps three: which two would be up to a sort."""
    row = torch.tensor([[5.0, 1.0, 5.0, 5.0]])
    assert left_by(row, SamplingParams(top_k=2)).tolist() == [[True, False, True, True]]


@pytest.mark.parametrize("top_p", [0.001, 0.5, 0.999])
def test_top_p_of_a_flat_large_vocabulary(top_p):
    """More than the best hundred are needed; the count is the exact one, within rounding."""
    scores = torch.linspace(1, 0, 50_000).unsqueeze(0)
    need = int((scores[0].double().softmax(-1).cumsum(0) < top_p).sum()) + 1
    assert abs(int(left_by(scores, SamplingParams(top_p=top_p)).sum()) - need) <= 2


@given(
    st.lists(st.sampled_from([0.0, 0.0, 1e-30, 1e-3, 1.0]), min_size=1, max_size=1500).filter(any),
    st.floats(0, 1, exclude_max=True),
)
def test_pick_is_the_inverse_of_the_running_sum(chances, uniform):
    """A token without a chance is never picked; the others where the sum passes, within rounding."""
    chances = torch.tensor(chances)
    got = int(pick(chances.unsqueeze(0), torch.tensor([[uniform]], dtype=torch.float64)))
    upto = chances.double().cumsum(0) / chances.double().sum()
    assert chances[got] > 0
    assert (upto[got - 1] if got else 0) <= uniform + 1e-9
    assert uniform <= upto[got] + 1e-9


def test_a_large_row_does_not_depend_on_its_batch():
    """Rows that start at every offset of a vector register, and blocks that are not full."""
    scores = torch.randn(9, 5003, generator=torch.Generator().manual_seed(1)) * 3
    each = [SamplingParams(top_p=0.9), SamplingParams(), SamplingParams(top_k=200, min_p=0.01)] * 3
    rows = [SamplingRow(params, i, 4) for i, params in enumerate(each)]
    alone = [sample(score.unsqueeze(0), [row])[0] for score, row in zip(scores, rows, strict=True)]
    assert sample(scores, rows) == alone


def test_philox_known_answers():
    """The vectors published with Random123 (philox4x32, 10 rounds)."""
    ones = 0xFFFFFFFF
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    counters, keys, answers = (np.array(column, np.uint64) for column in zip(*cases, strict=True))
    np.testing.assert_array_equal(philox(counters, keys), answers)


def test_uniforms_differ_by_seed_and_position():
    grid = [(seed, position) for seed in (-1, 0, 1, 2**64 - 2, 2**40) for position in range(200)]
    values = uniforms([s for s, _ in grid], [p for _, p in grid])
    assert len(set(values.tolist())) == len(grid)
    assert ((values > 0) & (values < 1)).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_break_their_row_alone(bad):
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    scores[1, 2] = bad
    for params in (SamplingParams(), SamplingParams(temperature=0), SamplingParams(top_p=0.5, logprobs=2)):
        asked = [SamplingRow(params, 0, 0)] * 3
        first, _, last = (sample(row[None], asked[:1])[0] for row in scores)
        assert sample(scores, asked) == [first, Sampled(BROKEN), last]


def test_a_bf16_row_can_be_drawn_at_any_temperature():
    scores = torch.tensor([[-1e30, 80.0, 79.5]], dtype=torch.bfloat16)
    for temperature in (1e-5, 0.01, 2.0):
        params = SamplingParams(temperature=temperature)
        assert sample(scores, [SamplingRow(params, 3, 0)])[0].token in (1, 2)
