"""Whole architectures as networks, run in torch: prompts in chunks, then tokens, beside the interpreter."""

from __future__ import annotations

import pytest

from irloom.backends.tensorrt.backend import TensorRTBackend
from irloom.backends.tensorrt.lower import lower
from irloom.backends.tensorrt.program import Program
from irloom.frontends.core import TraceOptions
from irloom.frontends.hf.trace import trace_config
from irloom.ir.elem import ELEMS
from irloom.ir.errors import TraceError
from irloom.passes import run_pipeline
from irloom.zoo import as_networks, names
from irloom.zoo.models import Specimen
from irloom.zoo.serve import Script, serve
from tests.backends.tensorrt.serving import PLANS, Model

DENSE = (
    "arcee", "cohere", "cohere2", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text", "glm", "glm4",
    "gpt_neox", "granite", "helium", "llama", "ministral", "mistral", "nemotron", "olmo", "olmo2", "olmo3",
    "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "llama4_text")
WHOLE = sorted({*DENSE, *EXPERTS} & set(names()))
"""Architectures of which nothing may be left between networks."""

OFTEN = ("gemma3_text", "mixtral", "qwen3_moe")

TOLERANCE = {"f32": 2e-4, "bf16": 4e-2}
"""Relative to the largest logit."""


def program(model: Model) -> Program:
    """The model through the target's own pipeline, with slots as short as the test's sequences."""
    steps = [PLANS["linear"] if s.startswith("kv-plan") else s for s in TensorRTBackend.pipeline]
    return lower(run_pipeline(model.traced, steps)[0])


def error(model: Model) -> float:
    """Of every step's logits for two sequences that are served together."""
    texts = [(9, model.specimen.draw(15, 1)), (19, model.specimen.draw(22, 2))]
    scripts = [Script(tokens, prompt, model.logits(tokens)) for prompt, tokens in texts]
    return serve(model.engine(program(model)), scripts).error


@pytest.mark.parametrize("name", ["mixtral"])
def test_an_architecture_computes_what_the_interpreter_does(name: str) -> None:
    model = Model.of(name)
    assert len(program(model).parts) == 1
    assert error(model) < TOLERANCE["f32"]


@pytest.mark.parametrize("name", ["gemma3_text", pytest.param("llama", marks=pytest.mark.slow)])
def test_in_the_element_of_the_target_it_rounds_as_the_interpreter_does(name: str) -> None:
    specimen = Specimen.of(name)
    options = TraceOptions(dtype=ELEMS[TensorRTBackend.dtype], check=False)
    model = Model(specimen, trace_config(specimen.config, options))
    assert "bf16" in {t.elem.name for t in program(model).segments[0].network.weights}
    assert error(model) < TOLERANCE["bf16"]


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_architecture_that_traces_runs(name: str) -> None:
    try:
        model = Model.of(name)
    except TraceError as why:
        pytest.skip(why.message)
    parts = program(model).parts
    assert name not in WHOLE or len(parts) == 1
    assert error(model) < TOLERANCE["f32"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in OFTEN)) for n in WHOLE]
)
def test_the_common_architectures_are_one_network(name: str) -> None:
    row = as_networks("tensorrt", name)
    assert (row.verdict, row.segments) == ("whole", 1), row.outside
