"""Sampling parameters: what is out of range is refused, and the error names the field."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from irloom.ir.errors import RequestError
from irloom.runtime.request import SamplingParams

REALS = {
    "temperature": (0, 2),
    "top_p": (math.ulp(0), 1),
    "min_p": (0, 1),
    "repetition_penalty": (math.ulp(0), 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
WHOLES = {"max_tokens": 1, "min_tokens": 0, "top_k": 0, "logprobs": 0, "seed": -(2**63)}


def given_as(name: str, value: Any) -> SamplingParams:
    fields: dict[str, Any] = {name: value}
    return SamplingParams(**fields)


@pytest.mark.parametrize("name", REALS)
@given(value=st.floats())
def test_reals(name, value):
    low, high = REALS[name]
    if low <= value <= high:
        assert getattr(given_as(name, value), name) == value
    else:
        with pytest.raises(RequestError, match=f"^{name}: "):
            given_as(name, value)


@pytest.mark.parametrize("name", [*REALS, *WHOLES])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.5", True, [1], {}, -(2**70), 0.5j])
def test_nothing_else_passes(name, value):
    with pytest.raises(RequestError, match=f"^{name}: "):
        given_as(name, value)


@pytest.mark.parametrize(("name", "low"), WHOLES.items())
def test_wholes(name, low):
    for value in (low, np.int64(low), low + 1):
        given_as(name, value)
    for value in (low - 1, 1.0, None if name in ("min_tokens", "top_k") else 1.5):
        with pytest.raises(RequestError, match=f"^{name}: "):
            given_as(name, value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop": ["a", ""]}, "stop: '' is not a non-empty string"),
        ({"stop": [b"a"]}, "stop: b'a' is not a non-empty string"),
        ({"stop": 3}, "stop: 3 is not a list"),
        ({"stop_token_ids": [1, -1]}, "stop_token_ids: -1 is not at least 0"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids: 'a' is not a whole number"),
        ({"logit_bias": {1: math.nan}}, "logit_bias: nan is not in [-100, 100]"),
        ({"logit_bias": {"1": 1.0}}, "logit_bias: '1' is not a whole number"),
        ({"logit_bias": [1]}, "logit_bias: [1] is not a mapping from token to bias"),
        ({"logprobs": 21}, "logprobs: 21 is not in [0, 20]"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens: 4 is more than max_tokens, 3"),
        ({"top_p": 0}, "top_p: 0 is not in (0, 1]"),
    ],
)
def test_messages(fields, message):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**fields)
    assert caught.value.message == message


def test_one_stop_string_will_do():
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert SamplingParams(stop=["ab", "c"]).stop == ("ab", "c")


def test_what_is_given_is_copied():
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[2] = 3.0
    assert params.logit_bias == {1: 2.0}
