"""Memory that runs out while an engine runs, or captures: smaller steps say what large ones would have."""

from __future__ import annotations

import pytest
import torch

from irloom.backends.cuda.arrays import StepArrays
from irloom.backends.cuda.buckets import Bucket
from irloom.backends.cuda.runner import Runner
from irloom.backends.cuda.step import Step
from irloom.ir.errors import OutOfMemory
from irloom.runtime.loop import Loop
from irloom.runtime.request import SamplingParams
from tests.backends.cuda.captures import Captures
from tests.backends.cuda.device import DEVICE
from tests.backends.cuda.serving import Model
from tests.backends.serving import LIMITS

GREEDY = SamplingParams(max_tokens=2, temperature=0.0)
PROMPTS = [[3, 1, 4, 1, 5], [6, 5]]


def said(family: str) -> tuple[list[list[int]], Loop]:
    """What a tiny model says to all prompts together."""
    model = Model.of(family)
    loop = Loop(model.engine(model.program(), LIMITS, DEVICE))
    return [output.token_ids for output in loop.generate(PROMPTS, GREEDY)], loop


@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_a_step_that_runs_out_of_memory_is_run_in_smaller_ones(family, monkeypatch):
    """It breaks off behind its last layer, with caches written, and states if there are some."""
    want, _ = said(family)
    run, failed = Runner.run, list[int]()

    def breaks_off(self: Runner, step: Step) -> torch.Tensor:
        logits = run(self, step)
        if step.tokens > 4:
            failed.append(step.tokens)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return logits

    monkeypatch.setattr(Runner, "run", breaks_off)
    got, loop = said(family)
    assert failed
    assert got == want
    assert loop.scheduler.budget < LIMITS.max_tokens
    loop.check()


def test_steps_behind_one_that_was_interrupted_are_right(monkeypatch):
    """By a user, when the device has all of it: host and device agree on whose turn it is."""
    want, _ = said("llama")
    model, leave, interrupted = Model.of("llama"), StepArrays.leave, list[int]()
    loop = Loop(model.engine(model.program(), LIMITS, DEVICE))

    def breaks_off(self: StepArrays, chosen: torch.Tensor) -> None:
        leave(self, chosen)
        if not interrupted:
            interrupted.append(len(chosen))
            raise KeyboardInterrupt

    monkeypatch.setattr(StepArrays, "leave", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        loop.generate(PROMPTS, GREEDY)
    assert [output.token_ids for output in loop.generate(PROMPTS, GREEDY)] == want


def test_a_block_that_steps_outgrow_is_given_back(monkeypatch):
    """No logits of earlier steps keep it."""
    model = Model.of("llama")
    engine = model.engine(model.program(), LIMITS, DEVICE)
    loop = Loop(engine)
    loop.generate(PROMPTS[1:], GREEDY)
    small = len(engine.runner.block.bytes)
    monkeypatch.setattr("irloom.backends.cuda.engine.planned", lambda program, tokens, seqs: small + 1)
    loop.generate(PROMPTS, GREEDY)
    assert len(engine.runner.block.bytes) > small
    there = engine.runner.block.bytes.untyped_storage().data_ptr()
    assert {x.untyped_storage().data_ptr() for x in engine._logits.values()} == {there}


def test_one_token_that_runs_out_of_memory_is_refused(monkeypatch):
    def none(self: Runner, step: Step) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(Runner, "run", none)
        model = Model.of("llama")
        loop = Loop(model.engine(model.program(), LIMITS, DEVICE))
        with pytest.raises(OutOfMemory, match=r"a step of 1 tokens of 1 seq[^$]*hint: a smaller"):
            loop.generate(PROMPTS[:1], GREEDY)
    assert loop.unfinished == loop.pages.in_use == 0
    loop.check()
    assert len(loop.generate(PROMPTS[:1], GREEDY)[0].token_ids) == 2


def test_fewer_graphs_are_kept_where_there_is_no_memory_for_more():
    graphs, ran = Captures(4), list[int]()
    steps = [*range(1, 6)] * 2 + [1, 2] * 2

    def run() -> None:
        for tokens in steps:
            graphs.run((Bucket(tokens, tokens, True), False), lambda n=tokens: ran.append(n))

    with pytest.warns(RuntimeWarning, match="no memory for another graph: 2 are kept from now on"):
        run()
    assert ran == steps
    assert graphs.replayed == 4 + 2


def test_other_errors_of_a_capture_are_told():
    graphs = Captures(1)

    def broken() -> torch.cuda.CUDAGraph:
        raise RuntimeError("a kernel failed")

    graphs._capture = lambda queue: broken()
    kind = Bucket(1, 1, True), False
    graphs.run(kind, lambda: None)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        graphs.run(kind, lambda: None)
