"""Tiny models on a ``CudaEngine``, beside the interpreter: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import random

import torch

from irloom.backends.core import Limits
from irloom.backends.cuda.backend import CudaBackend
from irloom.backends.cuda.engine import CudaEngine
from irloom.backends.cuda.lower import lower
from irloom.backends.cuda.program import Program
from irloom.backends.cuda.quantized import Operand
from irloom.backends.cuda.weights import operand_of, value_of
from irloom.backends.pools import pools
from irloom.ir.graph import Param
from irloom.passes import run_pipeline
from irloom.runtime.core import Batch
from irloom.zoo.serve import Script, Served, serve
from tests.backends.serving import CONTEXT, LIMITS, SPANS, TinyModel

PLAN = f"kv-plan(page=8, {SPANS})"


class Counted(CudaEngine):
    """An engine that keeps its batches, and the logits of those since ``kept`` was last emptied.

    Unless ``looks``, it keeps neither: its steps are those of ``CudaEngine``.
    """

    batches: list[Batch]
    kept: list[torch.Tensor]
    looks = True

    def logits(self, batch: Batch) -> torch.Tensor:
        if not self.looks:
            return super().logits(batch)
        self.batches = [*getattr(self, "batches", []), batch]
        logits = super().logits(batch)
        self.kept = [*getattr(self, "kept", []), logits.float().cpu().clone()]
        return logits


class Model(TinyModel):
    """A tiny model as it runs on the target."""

    def program(self) -> Program:
        """Lowered, as the target's own pipeline has it, with small pages."""
        return lower(run_pipeline(self.traced, self.pipeline())[0])

    def pipeline(self) -> str:
        """The target's own, but for the plan of its caches."""
        return ", ".join([*CudaBackend.pipeline[:-1], PLAN])

    def engine(self, program: Program, limits: Limits = LIMITS, device: str = "cpu") -> Counted:
        """An engine on weights as they are."""
        checkpoint, m = self.checkpoint, program.module

        def weight(p: Param, layer: int | None) -> Operand:
            return operand_of(value_of(p, layer, checkpoint, m), torch.device(device))

        made = pools(m, limits, CONTEXT)
        return Counted(program, weight, made, limits, CONTEXT, device)

    def traffic(self, seed: int, requests: int = 5, most: int = 12) -> list[Script]:
        """Requests that arrive while others run."""
        draw = random.Random(seed)
        made = list[Script]()
        for i in range(requests):
            prompt = draw.choice([1, 2, 7, 19])
            tokens = self.specimen.draw(prompt + draw.randint(1, most), 100 * seed + i)
            made.append(Script(tokens, prompt, self.logits(tokens), draw.randint(0, 8) if i else 0))
        return made

    def served(self, engine: Counted, scripts: list[Script]) -> Served:
        """Every step's logits beside the interpreter's."""
        return serve(engine, scripts)
