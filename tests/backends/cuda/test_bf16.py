"""Tiny models in bf16, as most are served: kernels round about as the interpreter does in that element."""

from __future__ import annotations

import pytest

from irloom.backends.cuda.backend import CudaBackend
from irloom.backends.cuda.lower import lower
from irloom.backends.cuda.runner import planned
from irloom.driver.core import trace
from irloom.ir.errors import TraceError
from irloom.passes import run_pipeline
from irloom.zoo.models import names, tiny
from tests.backends.cuda.device import DEVICE
from tests.backends.cuda.serving import ROUNDINGS, Half
from tests.backends.serving import LIMITS

MORE = ["mamba2", "qwen3_moe", "gemma3_text", "falcon_h1", "falcon_mamba"]


def served(family: str, *more: str) -> None:
    """A few requests, on the GPU or in Triton's interpreter."""
    model = Half.bf16(family, *more)
    traffic = model.traffic(len(family), requests=2, most=3)
    times, where = model.far(model.engine(model.program(), LIMITS, DEVICE), traffic)
    assert times < ROUNDINGS, where


def test_logits_are_as_near_to_those_of_f32_as_the_interpreters() -> None:
    served("llama")


@pytest.mark.parametrize("quantize", ["quantize(fp8)", "quantize(int4, group=32, scale=bf16)"])
def test_so_are_those_of_few_bits(quantize: str) -> None:
    served("llama", quantize)


@pytest.mark.slow
@pytest.mark.parametrize("family", MORE)
def test_so_are_those_of_other_families(family: str) -> None:
    served(family)


def step_is_planned(name: str) -> None:
    """All that a step's launches read, one before has made."""
    program = lower(run_pipeline(trace(tiny(name), "bf16"), [*CudaBackend.pipeline])[0])
    assert planned(program, 5, 2) > 0


def test_what_a_chain_makes_is_read_as_it_is() -> None:
    """Of a gate of bf16, cast for the delta rule, there is the cast alone."""
    step_is_planned("qwen3_next")


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_a_step_of_every_family_is_planned(name: str) -> None:
    try:
        step_is_planned(name)
    except TraceError as error:
        pytest.skip(f"not traced: {error.message}")
