"""A request whose logits are NaN ends alone: not with it who shares its steps, or who has its pages next."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch

from irloom.backends.cuda.quantized import Operand
from irloom.backends.cuda.runner import Run
from irloom.ir.graph import Param
from irloom.runtime.loop import Loop
from irloom.runtime.request import SamplingParams
from tests.backends.cuda.device import DEVICE
from tests.backends.cuda.serving import Counted, Model
from tests.backends.serving import FEW

POISON = 7
"""A token whose embedding is NaN."""
LONG = [2, POISON, *range(8, 14)]
PROMPTS = [[3, 1, 4, 1, 5], [6, 5]]
"""Shorter than the broken one: what it left in a page lies behind them."""
GREEDY = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)


def engine(model: Model) -> Counted:
    """One that has pages and states for two sequences, so that they come around."""
    made = model.engine(model.program(), FEW, DEVICE)
    weights = made.runner.weights

    def poisoned(p: Param, layer: int | None) -> Operand:
        x = weights(p, layer)
        if isinstance(x, torch.Tensor) and "embed" in str(p.weight):
            x = x.clone()
            x[POISON] = torch.nan
        return x

    made.runner.weights = poisoned
    return made


@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_nan_ends_one_request(family: str) -> None:
    ends_alone(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next", "jamba"])
def test_so_it_does_in_other_families(family: str) -> None:
    """Experts, windows and sinks, latents, delta rules, selective scans."""
    ends_alone(family)


def ends_alone(family: str) -> None:
    """Whichever of two it is."""
    model = Model.of(family)
    loop = Loop(engine(model))
    want = [o.token_ids for o in loop.generate(PROMPTS, GREEDY)]
    for at in range(2):
        prompts = [*PROMPTS]
        prompts[at] = LONG
        outputs = loop.generate(prompts, GREEDY)
        assert [o.finish_reason for o in outputs] == ["error" if i == at else "length" for i in range(2)]
        assert outputs[1 - at].token_ids == want[1 - at]
        assert not outputs[at].token_ids
        loop.check()
    assert [o.token_ids for o in loop.generate(PROMPTS, GREEDY)] == want


def test_a_step_that_fails_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It breaks off between its first launch and its last."""
    model = Model.of("llama")
    loop = Loop(engine(model))
    launch, launches = Run._launch, count()

    def breaks_off(self: Run, *given: Any) -> None:
        if next(launches) == 9:
            raise RuntimeError("a kernel failed")
        launch(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "_launch", breaks_off)
        with pytest.raises(RuntimeError, match="a kernel failed"):
            loop.generate(PROMPTS, GREEDY)
    assert loop.unfinished == loop.pages.in_use == 0
    want = [o.token_ids for o in Loop(engine(model)).generate(PROMPTS, GREEDY)]
    assert [o.token_ids for o in loop.generate(PROMPTS, GREEDY)] == want
