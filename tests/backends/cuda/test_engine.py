"""Tiny models served on a ``CudaEngine``: every step's logits beside the interpreter's."""

from __future__ import annotations

import pytest

from irloom.backends.cuda.trials import first_steps
from tests.backends.cuda.device import DEVICE
from tests.backends.cuda.serving import Model
from tests.backends.serving import FEW, LIMITS

TOLERANCE = 2e-4
FAMILIES = ["llama", "mamba2", "qwen3_moe"]
MORE = ["qwen3", "gemma3_text", "gpt_oss", "deepseek_v3", "qwen3_next", "falcon_h1", "jamba"]


def served(family: str) -> None:
    """A few requests, on the GPU or in Triton's interpreter; steps that nobody asked for leave no trace."""
    model = Model.of(family)
    engine = model.engine(model.program(), LIMITS, DEVICE)
    first_steps(engine)
    found = model.served(engine, model.traffic(len(family), requests=3, most=4))
    assert found.error < TOLERANCE, found.where


@pytest.mark.parametrize("family", FAMILIES)
def test_in_flight_batches_give_the_interpreters_logits(family: str) -> None:
    served(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", MORE)
def test_so_do_those_of_other_families(family: str) -> None:
    """Windows and softcaps, sinks, latents, experts, hybrids of attention and recurrences."""
    served(family)


def test_sequences_that_lose_their_pages_go_on() -> None:
    model = Model.of("llama")
    engine = model.engine(model.program(), FEW, DEVICE)
    served = model.served(engine, model.traffic(3, requests=3, most=5))
    assert served.error < TOLERANCE, served.where
