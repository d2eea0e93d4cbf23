"""The CUDA engine on a GPU: logits, graphs, what a steady step may do, engines that bring their kernels."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import TypeVar

import pytest
import torch

from irloom.backends.cuda import ahead, tuning
from irloom.backends.cuda.ahead import compile_all, rehearsed
from irloom.backends.cuda.captures import captured
from irloom.backends.cuda.clock import microseconds
from irloom.backends.cuda.graphs import Graphs
from irloom.backends.cuda.tuning import Tuner, tuner
from irloom.backends.cuda.warm import batches
from irloom.runtime.loop import Loop
from irloom.runtime.request import SamplingParams
from tests.backends.cuda.serving import ROUNDINGS, Counted, Half, Model
from tests.tiny import llama_config, save_model

TOLERANCE = 2e-4
SENSITIVE = {"qwen3_next": 2e-3}
"""One more rounding of what each op makes moves its logits by 1.3e-3, on the CPU as well."""
FAMILIES = {
    "llama": "grouped queries",
    "gemma3_text": "sliding windows",
    "gemma2": "softcaps",
    "deepseek_v3": "latents",
    "qwen3_moe": "experts",
    "falcon_h1": "a hybrid of attention and scans",
}
MORE = {
    "gpt_oss": "sinks",
    "qwen3_next": "a hybrid of attention and delta rules",
    "jamba": "and of selective scans",
}
FEWER_BITS = {
    "plain": (),
    "fp8": ("quantize(fp8)",),
    "int4": ("quantize(int4, group=32, scale=bf16)",),
}
"""Passes that join the pipeline."""


@pytest.fixture(autouse=True)
def untimed() -> Iterator[None]:
    """The first candidate stands in for the fastest: timing all would take minutes."""
    clock, tuner().clock = tuner().clock, None
    yield
    tuner().clock = clock


T = TypeVar("T")


class Drawn(Tuner):
    """Knows any candidate as the fastest, the same for a ``seed``: at other sizes it may be."""

    def __init__(self, seed: int) -> None:
        super().__init__(Path(os.devnull), microseconds)
        self.seed = seed

    def _known(self, text: str, candidates: Sequence[T]) -> T:
        return random.Random(f"{self.seed} {text}").choice(candidates)


def ready(model: Model) -> Counted:
    """An engine whose kernels are compiled, side by side."""
    engine = model.engine(model.program(), device="cuda")
    steps = [*batches(engine)]

    def run() -> None:
        for batch in steps:
            engine.submit(batch)

    graphs, engine.graphs.most = engine.graphs.most, 0
    compile_all(rehearsed(run), lambda done, total: None)
    engine.graphs.most = graphs
    engine.arrays.settle()
    return engine


@pytest.mark.parametrize("family", FAMILIES)
def test_in_flight_batches_give_the_interpreters_logits(family: str) -> None:
    """Launch by launch the first time that a size comes, then from graphs."""
    served(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", MORE)
def test_so_do_those_of_other_families(family: str) -> None:
    served(family)


def served(family: str) -> None:
    """Requests that come and go, twice."""
    model = Model.of(family)
    engine = ready(model)
    scripts = model.traffic(len(family))
    for _ in range(2):
        found = model.served(engine, scripts)
        assert found.error < SENSITIVE.get(family, TOLERANCE), found.where
    if not engine.program.exact:
        assert engine.graphs.captured > 1
        assert engine.graphs.replayed > 20


@pytest.mark.parametrize("more", FEWER_BITS)
@pytest.mark.parametrize("family", FAMILIES | MORE)
def test_logits_of_bf16_are_as_near_to_those_of_f32_as_the_interpreters(
    family: str, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever kernels are the fastest."""
    near(family, more, 0, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("more", FEWER_BITS)
@pytest.mark.parametrize("family", FAMILIES | MORE)
def test_so_are_those_of_other_kernels(
    family: str, more: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    near(family, more, seed, monkeypatch)


def near(family: str, more: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With kernels that are drawn, logits are as near to f32's as the interpreter's."""
    drawn = Drawn(seed)
    for module in (tuning, ahead):
        monkeypatch.setattr(module, "tuner", lambda: drawn)
    model = Half.bf16(family, *FEWER_BITS[more])
    scripts = model.traffic(len(family))
    times, where = model.far(ready(model), scripts)
    assert times < ROUNDINGS, where


def test_a_steady_step_takes_no_memory_and_is_all_in_its_graph() -> None:
    """Its tokens, too; its arrays are copied beside the step before."""
    model = Model.of("llama")
    engine = ready(model)
    engine.looks = False
    loop = Loop(engine)
    for n in (5, 9, 2):
        loop.add_request(model.specimen.draw(n, n).tolist(), SamplingParams(max_tokens=80, ignore_eos=True))
    for _ in range(8):
        loop.step()

    def taken() -> dict[str, int]:
        told = torch.cuda.memory_stats()
        return {name: told[f"{name}.all.allocated"] for name in ("allocation", "segment")}

    before = taken()
    for _ in range(50):
        loop.step()
    assert taken() == before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as found:
        for _ in range(4):
            loop.step()
        torch.cuda.synchronize()
    names = [e.name for e in found.events() or ()]
    assert [name for name in names if name.startswith("Memcpy")] == ["Memcpy HtoD (Pinned -> Device)"] * 4
    assert sum("_arrive" in name for name in names) == sum("_leave" in name for name in names) == 4


def test_an_engine_that_is_gone_is_collected_behind_a_capture() -> None:
    """Its graphs among the garbage would break the capture off."""
    model = Model.of("llama")
    out = torch.zeros(4, device="cuda")

    def gone() -> weakref.ref[Counted]:
        engine = ready(model)
        model.served(engine, model.traffic(1, requests=2))
        assert engine.graphs.captured
        engine.itself = engine  # type: ignore[attr-defined]
        return weakref.ref(engine)

    def queue() -> None:
        if gc.isenabled():  # then it may happen here
            gc.collect()
        out.add_(1)

    left = gone()
    captured(queue, torch.cuda.Stream()).replay()
    torch.cuda.synchronize()
    assert out.tolist() == [1.0] * 4
    gc.collect()
    assert left() is None


def test_a_capture_does_not_mind_what_other_threads_do() -> None:
    """They read the weights of another engine, say, each on a stream that torch hands it."""
    out, given = torch.zeros(4, device="cuda"), torch.ones(4)
    copies = [torch.zeros(4, device="cuda") for _ in range(64)]

    def read() -> None:
        for to in copies:
            with torch.cuda.stream(torch.cuda.Stream()):
                to.copy_(given)

    def queue() -> None:
        other = Thread(target=read)
        other.start()
        other.join()
        out.add_(1)

    captured(queue, Graphs(enabled=True).stream).replay()
    torch.cuda.synchronize()
    assert out.tolist() == [1.0] * 4
    assert all(to.tolist() == [1.0] * 4 for to in copies)


OPENED = """
import json, sys
from triton import knobs
compiled = []
def listen(*, src, cache_hit, **more):
    compiled.extend([] if cache_hit else [src.name])
knobs.compilation.listener = listen
from irloom.backends.core import Limits
from irloom.backends.cuda.backend import CudaBackend
from irloom.backends.cuda.tuning import tuner
tuner().clock = None  # timing all candidates would take minutes
CudaBackend.limits = Limits(max_tokens=48, max_seqs=4)
{}
print(json.dumps([said, compiled]))
"""
BUILD = "from irloom.driver import compile; said = str(compile(sys.argv[1], 'cuda', out=sys.argv[2]))"
ANSWER = """
from irloom import LLM, SamplingParams
llm = LLM(sys.argv[2])
params = SamplingParams(max_tokens=12, temperature=0)
said = [o.token_ids for o in llm.generate([[5] * n for n in (3, 40, 17, 1)], params)]
"""


def process(what: str, cache: Path, *words: Path) -> tuple[object, list[str]]:
    """What a new process says, and the kernels that it has compiled, with a ``cache`` of its own."""
    env = os.environ | {"TRITON_CACHE_DIR": str(cache / "triton"), "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-c", OPENED.format(what), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    said, compiled = json.loads(done.stdout.splitlines()[-1])
    return said, compiled


def test_an_engine_compiles_nothing_where_it_is_opened(tmp_path: Path) -> None:
    """Not where it was built, nor elsewhere; and a second build compiles nothing, and is the same, but
    for the record of what its passes did in how many seconds.
    """
    model, there, elsewhere = tmp_path / "model", tmp_path / "there", tmp_path / "elsewhere"
    save_model(llama_config(), model)
    process(BUILD, there, model, tmp_path / "one")
    _, compiled = process(BUILD, there, model, tmp_path / "two")
    assert compiled == []
    one, two = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two"))
    for manifest in (one, two):
        del manifest["parts"]["record.json"]
    assert one["parts"] == two["parts"] and one["links"] == two["links"]
    assert any(name.endswith(".cubin") for name in one["parts"])
    answers = [process(ANSWER, cache, model, tmp_path / "one") for cache in (there, elsewhere)]
    assert [compiled for _, compiled in answers] == [[], []]
    assert answers[0][0] == answers[1][0]
