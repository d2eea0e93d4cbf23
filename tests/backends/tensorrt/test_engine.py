"""The engine under the runtime: what joins, leaves, waits and comes back gets the interpreter's logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from irloom.backends.core import Limits
from irloom.backends.slots import whole
from irloom.backends.tensorrt.memory import assign
from irloom.ir.errors import RequestError
from irloom.runtime.core import Batch
from irloom.runtime.loop import Loop
from irloom.runtime.request import SamplingParams
from irloom.zoo.serve import Script, serve
from tests.backends.serving import CONTEXT, FEW, LIMITS
from tests.backends.tensorrt.serving import PLANS, Model

TOLERANCE = 2e-5
OFTEN = ["llama", "gemma3_text"]
FAMILIES = [
    "bloom", "cohere2", "deepseek_v3", "falcon", "gemma2", "gpt2", "gpt_neox", "gpt_oss", "granite",
    "llama4_text", "mixtral", "olmo2", "opt", "phi3", "qwen2", "qwen3", "qwen3_moe", "starcoder2",
]  # fmt: skip
RECURRENT = {"falcon_h1": 1e-4, "jamba": 1e-4, "mamba": 1e-4, "qwen3_next": 2e-3}
"""States sum up what rounds: one more rounding of each result moves the logits of the last by 1.3e-3."""


@pytest.mark.parametrize("layout", PLANS)
@pytest.mark.parametrize(
    "family", [*OFTEN, *(pytest.param(f, marks=pytest.mark.slow) for f in (*FAMILIES, *RECURRENT))]
)
def test_in_flight_batches_give_the_interpreters_logits(family: str, layout: str) -> None:
    """With slots for all, then with so few that sequences lose theirs."""
    model = Model.of(family)
    program, scripts = model.program(layout), model.traffic(len(family))
    served = model.served(model.engine(program), scripts)
    assert served.error < RECURRENT.get(family, TOLERANCE), served.where
    served = model.served(model.engine(program, FEW), scripts)
    assert served.error < RECURRENT.get(family, TOLERANCE), served.where
    assert served.preemptions


@pytest.mark.slow
@pytest.mark.parametrize("layout", PLANS)
@pytest.mark.parametrize("seed", range(20))
def test_any_traffic(layout: str, seed: int) -> None:
    model = Model.of("gemma3_text")
    served = model.served(model.engine(model.program(layout)), model.traffic(seed))
    assert served.error < TOLERANCE, served.where


@pytest.mark.parametrize("options", [{"filled": True}, {"packed": True}, {"cut": "layer"}], ids=str)
def test_how_a_step_is_cut_does_not_matter(options: dict[str, Any]) -> None:
    """A row for every slot, all sequences in one step, a network a layer."""
    model = Model.of("llama")
    program = model.program(cut=options.pop("cut", "whole"))
    served = model.served(model.engine(program, **options), model.traffic(1))
    assert served.error < TOLERANCE, served.where


@pytest.mark.parametrize("layout", PLANS)
def test_text_is_what_the_interpreter_would_say(layout: str) -> None:
    model = Model.of("llama")
    prompts = [model.specimen.draw(n, n).tolist() for n in (1, 3, 17, 40)]
    loop = Loop(model.engine(model.program(layout), replace(LIMITS, max_seqs=3)))
    outputs = loop.generate(prompts, SamplingParams(max_tokens=8, temperature=0.0))
    for prompt, output in zip(prompts, outputs, strict=True):
        known = list(prompt)
        for _ in range(8):
            known.append(int(model.logits(torch.tensor(known))[-1].argmax()))
        assert output.token_ids == known[len(prompt) :]


def test_prefixes_in_pages_are_shared() -> None:
    """A later sequence that begins as an earlier one starts from its pages: 35 tokens fill four of 8."""
    model = Model.of("llama")
    scripts = model.traffic(5, requests=2)
    tokens = torch.cat([scripts[0].tokens[:35], model.specimen.draw(7, 7)])
    served = serve(model.engine(model.program("paged")), scripts, [Script(tokens, 40, model.logits(tokens))])
    assert served.error < TOLERANCE, served.where
    assert served.cached == 32


@pytest.mark.parametrize("layout", PLANS)
def test_seeds_draw_the_same_tokens_alone_and_together(layout: str) -> None:
    model = Model.of("llama")
    program = model.program(layout)
    prompts = [model.specimen.draw(n, n).tolist() for n in (2, 9, 30)]
    params = [SamplingParams(max_tokens=9, seed=i, top_p=0.9, logprobs=2) for i in range(3)]
    together = Loop(model.engine(program)).generate(prompts, params)
    for prompt, one, output in zip(prompts, params, together, strict=True):
        (alone,) = Loop(model.engine(program)).generate([prompt], one)
        assert alone.token_ids == output.token_ids


def test_memory_stays_where_it_is() -> None:
    """Steps write caches, values and logits in the memory that was made for them."""
    model = Model.of("llama")
    engine = model.engine(model.program(cut="layer"))

    def places() -> list[int]:
        held = [*engine.caches.tensors.values(), *engine.memory.blocks, *(a.there for a in engine.arrays)]
        return [x.data_ptr() for x in held]

    before = places()
    model.served(engine, model.traffic(3))
    assert places() == before


@pytest.mark.parametrize("layout", PLANS)
def test_values_share_blocks_but_never_at_a_time(layout: str) -> None:
    program = Model.of("llama").program(layout, cut="layer")
    block, sizes = assign(program)
    made = {name: i for i, part in enumerate(program.parts) for name in part.makes}
    last = {name: i for i, part in enumerate(program.parts) for name in (*part.makes, *part.reads)}
    assert block.keys() == {name for name in made if name in program.values} - {program.logits}
    assert len(sizes) < len(block)
    for a, at in block.items():
        for b, same in block.items():
            if a < b and at == same:
                assert last[a] < made[b] or last[b] < made[a], f"{a} and {b} are in one block at a time"


def test_slots_and_their_length_follow_from_the_limits() -> None:
    model = Model.of("llama")
    engine = model.engine(model.program(), Limits(max_tokens=7, max_seqs=3, max_context=CONTEXT))
    (pool,) = engine.pools
    assert (pool.pages, pool.page) == (3, CONTEXT + 13)
    assert {t.shape[:1] + t.shape[2:3] for t in engine.caches.tensors.values()} == {(3, CONTEXT + 13)}
    with pytest.raises(RequestError, match=f"one sequence of {CONTEXT} tokens needs {pool.page_bytes:,}"):
        model.engine(model.program(), replace(LIMITS, memory=pool.page_bytes - 1))


def batch(tokens: int, context: int) -> Batch:
    """One sequence of slot 0."""
    positions = np.arange(context - tokens, context, dtype=np.int32)
    starts, ends = np.array([0, tokens], np.int32), np.array([context], np.int32)
    return Batch(np.ones(tokens, np.int32), positions, starts, ends, (np.zeros((1, 1), np.int32),), (None,))


def test_a_step_that_is_too_large_names_the_dim_the_limit_and_the_option() -> None:
    model = Model.of("llama")
    engine = model.engine(model.program("paged"), replace(LIMITS, max_tokens=20))
    with pytest.raises(RequestError, match="T is 20 in this step, but the engine takes 1 to 13") as e:
        engine.logits(batch(20, 20))
    assert "kv-plan(max_tokens=...)" in str(e.value)


def test_limits_that_slots_are_too_short_for_are_refused() -> None:
    model = Model.of("llama")
    with pytest.raises(RequestError, match="need slots of 116, but the engine has slots of 109"):
        model.engine(model.program(), replace(LIMITS, max_tokens=20))


def test_a_batch_in_pages_is_one_step() -> None:
    step = whole(batch(5, 9))
    assert (step.past.tolist(), step.lengths.tolist(), step.pad.shape) == ([4], [9], (1, 5))
