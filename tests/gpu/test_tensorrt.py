"""What the TensorRT engine is without TensorRT: slots, buffers, bodies, graphs and the sampler, on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from irloom.backends import device_sampler
from irloom.backends.tensorrt.executor import Executor
from irloom.backends.tensorrt.graphs import Graphed
from irloom.backends.tensorrt.lower import Cut
from irloom.runtime import sampler
from irloom.runtime.core import BROKEN, SamplingRow
from irloom.runtime.loop import Loop
from irloom.runtime.request import SamplingParams
from tests.backends.serving import FEW, LIMITS
from tests.backends.tensorrt.serving import PLANS, Model

TOLERANCE = 2e-4
SENSITIVE = {"qwen3_next": 2e-3}
"""One more rounding of what each op makes moves its logits by 1.3e-3, on the CPU as well."""
FAMILIES = [
    "llama", "gemma3_text", "gpt2", "bloom", "phi3", "gpt_oss", "mixtral", "qwen3_moe", "deepseek_v3",
    "llama4_text", "qwen3_next", "mamba",
]  # fmt: skip


@pytest.mark.parametrize("layout", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_in_flight_batches_give_the_interpreters_logits(family: str, layout: str) -> None:
    """On the CPU, that is: with slots for all, then with so few that sequences lose theirs."""
    model = Model.of(family)
    program, scripts = model.program(layout), model.traffic(len(family))
    for limits in (LIMITS, FEW):
        engine = model.engine(program, limits, device="cuda")
        served = model.served(engine, scripts)
        assert served.error < SENSITIVE.get(family, TOLERANCE), served.where


class Graphs(list[Graphed]):
    """Wraps executors, and keeps them to be looked at."""

    def __call__(self, executor: Executor) -> Graphed:
        self.append(Graphed(executor))
        return self[-1]


@pytest.mark.parametrize("layout", PLANS)
@pytest.mark.parametrize("cut", ["whole", "layer"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_oss"])
def test_networks_are_captured_in_graphs(family: str, cut: Cut, layout: str) -> None:
    """Every network of every part, at the sizes that come again; logits stay what they are."""
    model, graphs = Model.of(family), Graphs()
    program = model.program(layout, cut=cut)
    engine = model.engine(program, device="cuda", wrap=graphs, filled=True)
    scripts = model.traffic(7)
    for _ in range(2):
        served = model.served(engine, scripts)
        assert served.error < TOLERANCE, served.where
    assert all(g.captures for g in graphs)
    assert all(g.replays > 20 for g in graphs)


@pytest.mark.parametrize("layout", PLANS)
def test_text_is_the_same_as_on_the_cpu(layout: str) -> None:
    model = Model.of("llama")
    program = model.program(layout)
    prompts = [model.specimen.draw(n, n).tolist() for n in (1, 3, 17, 40, 5, 9)]
    params = [SamplingParams(max_tokens=12, temperature=t, seed=i) for i, t in enumerate((0.0, 1.0) * 3)]
    told = [
        [o.token_ids for o in Loop(model.engine(program, device=device)).generate(prompts, params)]
        for device in ("cpu", "cuda")
    ]
    assert told[0] == told[1]


def rows(count: int) -> Iterator[SamplingRow]:
    """Every kind of parameter, in turn."""
    kinds = [
        {"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 50, "temperature": 0.7}, {"min_p": 0.05},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
        {"logit_bias": {7: 5.0}, "logprobs": 5}, {"top_p": 0.99, "temperature": 1.9}, {},
    ]  # fmt: skip
    for i in range(count):
        params = SamplingParams(**kinds[i % len(kinds)])
        yield SamplingRow(params, i, i * 3, (1, 2), None, {i: 2, i + 9: 1} if params.penalized else {})


@pytest.mark.parametrize(("vocab", "spread"), [(1000, 3.0), (32_000, 1.0), (128_256, 4.0)])
def test_the_sampler_chooses_what_it_chooses_on_the_cpu(vocab: int, spread: float) -> None:
    logits = torch.randn(64, vocab, generator=torch.Generator().manual_seed(vocab)) * spread
    asked = list(rows(64))
    there, here = device_sampler.sample(logits.cuda(), asked), sampler.sample(logits, asked)
    assert [s.token for s in there] == [s.token for s in here]
    for a, b in zip(there, here, strict=True):
        assert [t for t, _ in a.top] == [t for t, _ in b.top]
        assert (a.logprob is None) == (b.logprob is None)
        assert a.logprob is None or a.logprob == pytest.approx(b.logprob, abs=1e-4)


def test_a_step_copies_twice_to_the_device_and_once_from_there() -> None:
    """The arrays of the step, what the sampler needs to know; the tokens it chose."""
    model, graphs = Model.of("llama"), Graphs()
    loop = Loop(model.engine(model.program(), device="cuda", wrap=graphs, filled=True))
    for n in (5, 9):
        loop.add_request(model.specimen.draw(n, n).tolist(), SamplingParams(max_tokens=40, seed=n, top_k=9))
    for _ in range(6):
        loop.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as found:
        for _ in range(4):
            loop.step()
        torch.cuda.synchronize()
    copies = [e.name for e in found.events() or () if e.name.startswith("Memcpy")]
    assert sum("HtoD" in name for name in copies) == 4 * 2
    assert sum("DtoH" in name for name in copies) == 4
    assert graphs[0].replays >= 4


def test_a_bad_row_is_broken_and_leaves_the_device_well() -> None:
    logits = torch.zeros(3, 1000, device="cuda")
    logits[1] = float("nan")
    asked = [SamplingRow(SamplingParams(logprobs=3, top_p=0.9), 0, 0)] * 3
    assert [one.token == BROKEN for one in device_sampler.sample(logits, asked)] == [False, True, False]
    assert len(device_sampler.sample(logits[:1], asked[:1])) == 1
