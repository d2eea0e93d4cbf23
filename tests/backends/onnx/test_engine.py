"""ONNX engines under the runtime: what joins, leaves, waits and comes back gets the logits of the library."""

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")

from irloom.backends.artifact import EngineReader, EngineWriter, Manifest
from irloom.backends.core import Limits, backend, quiet
from irloom.backends.onnx.engine import OnnxEngine
from irloom.frontends.hf.live import LiveCheckpoint
from irloom.frontends.hf.selfcheck import import_tiny
from irloom.ir.errors import IrloomError, PipelineError, RequestError
from irloom.ir.plan import kv_plan
from irloom.passes import run_pipeline
from irloom.zoo.models import Specimen
from irloom.zoo.serve import Script, serve

TOLERANCE = 2e-5
LOOSE = {"qwen3_next": 2e-4}
"""States that sum up over many tokens round otherwise in another order."""
LIMITS = Limits(max_tokens=13, max_seqs=5, max_context=200, threads=1)
OFTEN = ["llama", "gemma3_text", "gpt2"]
FAMILIES = [
    "bloom", "cohere2", "deepseek_v3", "falcon", "falcon_h1", "gemma", "gemma2", "glm4_moe", "gpt_neox",
    "gpt_oss", "granite", "jamba", "mamba", "mamba2", "mistral", "mixtral", "olmo2", "opt", "phi3",
    "qwen2", "qwen3", "qwen3_moe", "qwen3_next", "recurrent_gemma", "rwkv", "smollm3", "starcoder2",
]  # fmt: skip
QUIET = {1, 18}
"""Seeds of traffic in which nobody gives way."""


def build(specimen: Specimen, out: Path, *, pipeline: str | None = None) -> Path:
    """An engine of a tiny model."""
    made = backend("onnx")
    m, _ = import_tiny(specimen.config, specimen.model)
    m, _ = run_pipeline(m, pipeline or list(made.pipeline))
    settings = {"max_context": 2048, "eos": []}
    with EngineWriter(out, Manifest("onnx", specimen.name, [], {}, {}, settings=settings)) as writer:
        made.build(m, LiveCheckpoint(specimen.model), writer, quiet)
    return out


def opened(folder: Path, limits: Limits = LIMITS) -> OnnxEngine:
    engine = backend("onnx").open(EngineReader(folder), limits)
    assert isinstance(engine, OnnxEngine)
    return engine


@pytest.fixture(scope="module")
def llama() -> Specimen:
    return Specimen.of("llama")


@pytest.fixture(scope="module")
def folder(llama: Specimen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(llama, tmp_path_factory.mktemp("engine") / "llama")


def traffic(specimen: Specimen, seed: int, requests: int = 12) -> list[Script]:
    """Requests of all sorts, most of which arrive while others run; some go before those that run."""
    draw = random.Random(seed)
    made = list[Script]()
    for i in range(requests):
        prompt = draw.choice([1, 2, 7, 19, 40])
        tokens = specimen.draw(prompt + draw.randint(1, 25), 100 * seed + i)
        arrives, priority = draw.randint(0, 40), draw.choice([0, 0, -1])
        made.append(Script(tokens, prompt, specimen.logits(tokens), arrives, priority))
    return made


def check(specimen: Specimen, folder: Path, seed: int) -> int:
    """With slots for all, then with so few that sequences may lose theirs; how often they do."""
    scripts, tolerance = traffic(specimen, seed), LOOSE.get(specimen.name, TOLERANCE)
    served = serve(opened(folder), scripts)
    assert served.error < tolerance, served.where
    served = serve(opened(folder, replace(LIMITS, max_seqs=2)), scripts)
    assert served.error < tolerance, served.where
    return served.preemptions


@pytest.mark.parametrize("family", [*OFTEN, *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES)])
def test_in_flight_batches_give_the_librarys_logits(family: str, tmp_path: Path) -> None:
    specimen = Specimen.of(family)
    assert check(specimen, build(specimen, tmp_path / family), seed=len(family))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_any_traffic(llama: Specimen, folder: Path, seed: int) -> None:
    assert check(llama, folder, seed) or seed in QUIET


def test_limits_need_no_rebuild(llama: Specimen, folder: Path) -> None:
    """More tokens than the module's own slots have, more sequences, other steps: the same folder."""
    tokens = llama.draw(150, 1)
    script = Script(tokens, 100, llama.logits(tokens))
    for limits in (Limits(150, 1, 150, threads=2), Limits(3, 64, 2048, threads=1)):
        engine = opened(folder, limits)
        assert (engine.max_tokens, engine.max_seqs, engine.max_context) == (
            limits.max_tokens,
            limits.max_seqs,
            limits.max_context,
        )
        assert serve(engine, [script, script]).error < TOLERANCE


def test_memory_says_how_many_slots_there_are(folder: Path) -> None:
    plan = kv_plan(EngineReader(folder).module())
    each = int(plan.token_bytes * 201)
    assert opened(folder, replace(LIMITS, memory=3 * each)).pools[0].pages == 3
    with pytest.raises(RequestError, match="one sequence of 200 tokens needs"):
        opened(folder, replace(LIMITS, memory=each - 1))


def test_a_step_writes_its_keys_in_place_and_nothing_else(llama: Specimen, folder: Path) -> None:
    """Other slots hold ones, which stay; no memory moves."""
    engine = opened(folder)
    caches = engine.caches.arrays
    for keys in caches.values():
        keys[1:] = 1
    at = {name: keys.ctypes.data for name, keys in caches.items()}
    tokens = llama.draw(9, 1)
    assert serve(engine, [Script(tokens, 7, llama.logits(tokens))]).error < TOLERANCE
    assert {name: keys.ctypes.data for name, keys in engine.caches.arrays.items()} == at
    for keys in caches.values():
        written = np.abs(keys[0]).max(axis=(0, 2)) > 0
        assert written.sum() == 9
        assert written[:9].all()
        assert (keys[1:] == 1).all()


def test_a_pipeline_without_slots_is_refused(llama: Specimen, tmp_path: Path) -> None:
    paged = "canonicalize, raise, outline, gather-logits, kv-cache, kv-plan"
    with pytest.raises(PipelineError, match="slot of every cache"):
        build(llama, tmp_path / "engine", pipeline=paged)
    assert not (tmp_path / "engine").exists()


def test_an_engine_is_a_model_that_other_tools_open(folder: Path, tmp_path: Path) -> None:
    """And its weights, once: the checker loads both, and the file of weights is safetensors."""
    import onnx
    from safetensors import safe_open

    copy = shutil.copytree(folder, tmp_path / "copy")
    onnx.checker.check_model(str(copy / "model.onnx"), full_check=True)
    sizes = [f.stat().st_size for f in copy.iterdir() if f.is_file()]
    with safe_open(copy / "weights.safetensors", "pt") as weights:
        stored = sum(weights.get_tensor(k).nbytes for k in weights.keys())  # noqa: SIM118
    assert sum(sizes) < 2 * stored


def test_sampling_follows_the_order_of_the_batch(llama: Specimen, folder: Path) -> None:
    """Slots are not in the order of sequences once one left and another came."""
    from irloom.runtime import SamplingParams
    from irloom.runtime.loop import Loop

    prompts = [llama.draw(n, n).tolist() for n in (3, 17, 1, 9, 5, 12)]
    greedy = [SamplingParams(max_tokens=n, temperature=0.0) for n in (3, 20, 7, 12, 20, 9)]
    loop = Loop(opened(folder, replace(LIMITS, max_seqs=3)))
    together = [o.token_ids for o in loop.generate(prompts, greedy)]
    alone: list[Any] = [loop.generate([p], g)[0].token_ids for p, g in zip(prompts, greedy, strict=True)]
    assert together == alone
    expected = torch.tensor(prompts[1])
    for token in alone[1]:
        assert int(llama.logits(expected)[-1].argmax()) == token
        expected = torch.cat([expected, torch.tensor([token])])


def test_what_goes_wrong_in_a_step_is_said(llama: Specimen, folder: Path) -> None:
    """A token that the model has no row for, which the runtime would have refused."""
    engine = opened(folder)
    tokens = llama.draw(4, 1)
    script = Script(tokens + 10**6, 4, llama.logits(tokens))
    with pytest.raises(IrloomError, match=r"failed in a step of 4 tokens in 1 slots of 64: .*Gather"):
        serve(engine, [script])
    assert serve(engine, [Script(tokens, 4, llama.logits(tokens))]).error < TOLERANCE, "and it goes on"
