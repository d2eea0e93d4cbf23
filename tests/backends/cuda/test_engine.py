"""Tiny models served on a ``CudaEngine``: every step's logits beside the interpreter's."""

from __future__ import annotations

import pytest

from tests.backends.cuda.device import DEVICE
from tests.backends.cuda.serving import FEW, LIMITS, Model

TOLERANCE = 2e-4
FAMILIES = ["llama", "qwen3", "gemma3_text", "gpt_oss", "qwen3_moe", "deepseek_v3", "mamba2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_in_flight_batches_give_the_interpreters_logits(family: str) -> None:
    model = Model.of(family)
    engine = model.engine(model.program(), LIMITS, DEVICE)
    served = model.served(engine, model.traffic(len(family)))
    assert served.error < TOLERANCE, served.where


def test_sequences_that_lose_their_pages_go_on() -> None:
    model = Model.of("llama")
    engine = model.engine(model.program(), FEW, DEVICE)
    served = model.served(engine, model.traffic(3, requests=6))
    assert served.error < TOLERANCE, served.where
