"""Tiny models in few bits on a ``CudaEngine``: logits beside those of the same program interpreted."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from irloom.backends.cuda.lower import lower
from irloom.backends.cuda.program import Program
from irloom.backends.cuda.runner import planned
from irloom.ir.errors import IRError
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import Seqs
from irloom.passes import run_pipeline
from tests.backends.cuda.device import DEVICE
from tests.backends.cuda.serving import Model
from tests.backends.serving import LIMITS


@dataclass(frozen=True)
class FewBits(Model):
    """A model that a pass rounds."""

    quantize: str = "quantize"

    @staticmethod
    def rounded(name: str, quantize: str) -> FewBits:
        """The tiny model of a name, rounded so."""
        plain = Model.of(name)
        return FewBits(plain.specimen, plain.traced, quantize)

    def program(self) -> Program:
        return lower(self.final(self.traced, self.quantize))

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        m, _ = run_pipeline(self.traced, f"canonicalize, raise, {self.quantize}")
        run = Interpreter(m, self.checkpoint)
        with torch.inference_mode():
            return run(tokens.int(), Seqs.of([len(tokens)]))[0]


SCHEMES = ["quantize(fp8)", "quantize(fp8, activations=plain)", "quantize(int4, group=32, scale=bf16)"]


@pytest.mark.parametrize("quantize", SCHEMES)
def test_a_step_of_a_rounded_program_is_planned(quantize: str) -> None:
    program = FewBits.rounded("llama", quantize).program()
    assert not program.fallbacks
    assert planned(program, 4, 2) > 0


def test_one_scale_for_all_tokens_of_a_step_is_refused() -> None:
    model = FewBits.rounded("llama", "quantize(fp8, activations=tensor)")
    with pytest.raises(IRError, match=r"cuda: .*rows=0.*: kernels round tokens one by one"):
        model.program()


@pytest.mark.slow
@pytest.mark.parametrize("quantize", SCHEMES)
def test_rounded_models_give_the_interpreters_logits(quantize: str) -> None:
    model = FewBits.rounded("llama", quantize)
    engine = model.engine(model.program(), LIMITS, DEVICE)
    served = model.served(engine, model.traffic(3, requests=2, most=2))
    assert served.error < 2e-4, served.where
