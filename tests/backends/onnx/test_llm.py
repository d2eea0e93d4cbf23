"""From a model on disk to text by way of ONNX Runtime: what the CPU target and the library say."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")

import irloom
from irloom import driver
from tests.tiny import gemma_config, llama_config, save_model

PROMPTS = [
    "once upon",
    "a",
    "there was a little compiler that could read its own programs, once upon a time " * 2,
    "programs read",
]
pytestmark = pytest.mark.usefixtures("own_cache")
GREEDY = irloom.SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module", params=[llama_config, gemma_config], ids=["llama", "gemma3"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(request.param(), folder)
    return folder


def answers(llm: irloom.LLM, prompts: list[str]) -> list[list[int]]:
    outputs = llm.generate(prompts, GREEDY)
    llm.loop.check()
    assert llm.loop.pages.in_use == 0
    return [o.token_ids for o in outputs]


def test_greedy_answers_are_the_references_however_they_are_served(model: Path) -> None:
    wanted = answers(irloom.LLM(model, "reference", threads=1), PROMPTS)
    llm = irloom.LLM(model, "onnx", threads=1)
    assert answers(llm, PROMPTS) == wanted
    assert [answers(llm, [p])[0] for p in PROMPTS] == wanted
    few = irloom.LLM(model, "onnx", threads=2, max_tokens=7, max_seqs=3, max_context=90)
    assert answers(few, PROMPTS) == wanted
    assert "".join(llm.stream(PROMPTS[0], GREEDY)) == llm.generate([PROMPTS[0]], GREEDY)[0].text


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_quantized_engine_follows_its_dequantized_reference(model: Path, dtype: str) -> None:
    """ONNX Runtime multiplies such weights as they are, with activations rounded to eight bits."""
    texts = {}
    for target in ("onnx", "reference"):
        *start, last = driver.backend(target).pipeline
        pipeline = ", ".join([*start, f"quantize({dtype})", last])
        llm = irloom.LLM(model, target, pipeline, threads=1)
        texts[target] = llm.generate(
            PROMPTS, irloom.SamplingParams(temperature=0.0, max_tokens=1, logprobs=5)
        )
    for a, b in zip(texts["onnx"], texts["reference"], strict=True):
        assert a.logprobs
        assert b.logprobs
        known = dict(b.logprobs[0].top)
        shared = [abs(score - known[token]) for token, score in a.logprobs[0].top if token in known]
        assert len(shared) >= 3
        assert max(shared) < 0.15


@pytest.mark.slow
def test_gemma_3_270m_says_what_the_cpu_target_says(gemma_gguf: Path) -> None:
    prompts = [
        "The capital of France is",
        "Once upon a time, there was",
        "def fibonacci(n):",
        "Water boils at",
        "A compiler is a program that",
    ]
    cpu, onnx = (irloom.LLM(gemma_gguf, target, threads=1, max_context=512) for target in ("cpu", "onnx"))
    wanted = [o.text for o in cpu.generate(prompts, GREEDY)]
    assert [o.text for o in onnx.generate(prompts, GREEDY)] == wanted
    assert [onnx.generate([p], GREEDY)[0].text for p in prompts] == wanted
