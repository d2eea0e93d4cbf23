"""Bias, penalties, bans and log-probabilities, behind the graph: what the runtime's sampler says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.rare import choose_again
from irloom.backends.cuda.work import Workspace
from irloom.runtime.core import BROKEN, Batch, Sampled, SamplingRow
from irloom.runtime.request import SamplingParams
from irloom.runtime.sampler import sample

from .device import DEVICE
from .test_sample import told

VOCAB = 300
tokens = st.integers(0, VOCAB - 1)
params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0, 0.6]),
    top_p=st.sampled_from([1.0, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.4]),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    logit_bias=st.dictionaries(tokens, st.floats(-100, 100), max_size=3),
    logprobs=st.one_of(st.none(), st.integers(0, 20)),
)
rows = st.builds(
    SamplingRow,
    params,
    seed=st.integers(0, 2**64 - 1),
    position=st.integers(0, 99),
    banned=st.sets(tokens, max_size=3).map(tuple),
    prompt=st.sets(tokens, max_size=9).map(lambda x: np.array(sorted(x), np.int32)),
    counts=st.lists(tokens, max_size=9).map(Counter),
)


def again(logits: torch.Tensor, asked: list[SamplingRow], rare: tuple[int, ...]) -> list[Sampled]:
    """Sequences that are not rare keep what they have, which is 77."""
    none = np.zeros(0, np.int32)
    batch = Batch(none, none, none, none, (), asked, rare=rare)
    chosen = torch.full([len(asked)], 77, dtype=torch.int32, device=DEVICE)
    reports = choose_again(chosen, logits.to(DEVICE), told([*asked]), batch, Workspace(DEVICE))
    found = reports.take() if reports else {}
    return [found.get(s) or Sampled(token) for s, token in enumerate(chosen.tolist())]


@given(st.lists(rows, min_size=1, max_size=5), st.data())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_it_chooses_what_the_runtime_chooses(asked, data):
    rare = tuple(data.draw(st.lists(st.sampled_from(range(len(asked))), min_size=1, unique=True)))
    logits = torch.randn(len(asked), VOCAB, generator=torch.Generator().manual_seed(len(rare))) * 3
    expected = [Sampled(77)] * len(asked)
    for s in rare:
        expected[s] = sample(logits[s : s + 1], [asked[s]])[0]
    for one, other in zip(again(logits, asked, rare), expected, strict=True):
        assert one.token == other.token
        assert (one.logprob is None) == (other.logprob is None)
        np.testing.assert_allclose(one.logprob or 0, other.logprob or 0, atol=1e-5)
        assert [t for t, _ in one.top] == [t for t, _ in other.top]


def test_broken_logits_are_told_and_not_reported():
    logits = torch.zeros(3, VOCAB)
    logits[1, 5] = torch.nan
    asked = [SamplingRow(SamplingParams(logprobs=2, temperature=0), 0, 0)] * 3
    first, broken, last = again(logits, asked, (0, 1, 2))
    assert broken == Sampled(BROKEN)
    assert first == last
    assert len(first.top) == 2
