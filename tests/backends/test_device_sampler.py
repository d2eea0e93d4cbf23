"""The sampler of a device chooses what the runtime's sampler chooses, whatever is asked for in one step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends import device_sampler
from irloom.runtime import sampler
from irloom.runtime.core import BROKEN, SamplingRow
from irloom.runtime.request import SamplingParams

VOCAB = 300
tokens = st.integers(0, VOCAB - 1)
params = st.builds(
    SamplingParams,
    temperature=st.one_of(st.just(0.0), st.floats(0.05, 2)),
    top_k=st.one_of(st.just(0), st.integers(0, VOCAB + 5)),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1)),
    min_p=st.one_of(st.just(0.0), st.floats(0, 0.5)),
    repetition_penalty=st.one_of(st.just(1.0), st.floats(0.5, 2)),
    presence_penalty=st.one_of(st.just(0.0), st.floats(-2, 2)),
    frequency_penalty=st.one_of(st.just(0.0), st.floats(-2, 2)),
    logit_bias=st.dictionaries(tokens, st.floats(-100, 100), max_size=3),
    logprobs=st.one_of(st.none(), st.integers(0, 20)),
)
rows = st.builds(
    SamplingRow,
    params,
    seed=st.integers(-(2**63), 2**64 - 1),
    position=st.integers(0, 10_000),
    banned=st.sets(tokens, max_size=3).map(tuple),
    prompt=st.one_of(st.none(), st.sets(tokens, max_size=9).map(lambda x: np.array(sorted(x), np.int32))),
    counts=st.lists(tokens, max_size=9).map(Counter),
)


@given(st.lists(rows, min_size=1, max_size=6), st.integers(0, 99), st.sampled_from([0.3, 3.0, 12.0]))
@settings(max_examples=150)
def test_it_chooses_what_the_runtime_chooses(asked, seed, spread):
    """Parameters of every kind in one batch; tokens and log-probabilities are the same bits."""
    logits = torch.randn(len(asked), VOCAB, generator=torch.Generator().manual_seed(seed)) * spread
    before = logits.clone()
    assert device_sampler.sample(logits, asked) == sampler.sample(logits, asked)
    assert torch.equal(logits, before)


def test_rows_may_lie_anywhere():
    logits = torch.randn(9, VOCAB, generator=torch.Generator().manual_seed(1))
    asked = [SamplingRow(SamplingParams(logprobs=1), i, 0) for i in range(3)]
    assert device_sampler.sample(logits, asked, [7, 0, 4]) == sampler.sample(logits[[7, 0, 4]], asked)
    assert device_sampler.sample(logits, asked) == sampler.sample(logits[:3], asked)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_fewer_bits(dtype):
    logits = torch.randn(8, 5000, generator=torch.Generator().manual_seed(0)).mul(4).to(dtype)
    asked = [SamplingRow(SamplingParams(top_p=0.9, top_k=40), i, i) for i in range(8)]
    assert device_sampler.sample(logits, asked) == sampler.sample(logits, asked)


def test_a_nucleus_of_more_than_is_sorted_at_first_takes_a_second_go(monkeypatch):
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)).mul(0.1)
    asked = [SamplingRow(SamplingParams(top_p=p), i, 0) for i, p in enumerate((0.99, 0.001, 1.0, 0.5))]
    sizes = list[int]()

    def among(*given):
        sizes.append(given[-1])
        return sampler.nucleus_among(*given)

    monkeypatch.setattr(device_sampler, "nucleus_among", among)
    assert device_sampler.sample(logits, asked) == sampler.sample(logits, asked)
    assert sizes == [128, 1024, 5000]


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
def test_a_row_without_a_score_is_broken(bad):
    logits = torch.zeros(3, 10)
    logits[1] = bad
    for params in (SamplingParams(), SamplingParams(temperature=0), SamplingParams(top_p=0.5, logprobs=2)):
        asked = [SamplingRow(params, 0, 0)] * 3
        chosen = device_sampler.sample(logits, asked)
        assert chosen == sampler.sample(logits, asked)
        assert [one.token == BROKEN for one in chosen] == [False, True, False]


def test_nothing_asked_nothing_chosen():
    assert device_sampler.sample(torch.zeros(0, 10), []) == []
