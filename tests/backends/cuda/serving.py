"""Tiny models on a ``CudaEngine``, beside the interpreter: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cache

import torch

from irloom.backends.core import Limits
from irloom.backends.cuda.backend import CudaBackend
from irloom.backends.cuda.engine import CudaEngine
from irloom.backends.cuda.lower import lower
from irloom.backends.cuda.program import Program
from irloom.backends.cuda.quantized import Operand
from irloom.backends.cuda.weights import operand_of, value_of
from irloom.backends.pools import pools
from irloom.frontends.hf.live import LiveCheckpoint
from irloom.frontends.hf.selfcheck import import_tiny
from irloom.ir.graph import Module, Param
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import Seqs
from irloom.passes import run_pipeline
from irloom.runtime.core import Batch
from irloom.zoo.models import Specimen
from irloom.zoo.serve import Script, Served, serve

CONTEXT = 96
LIMITS = Limits(max_tokens=13, max_seqs=5, max_context=CONTEXT)
FEW = replace(LIMITS, max_seqs=2)
PLAN = f"kv-plan(page=8, context={CONTEXT}, max_seqs=5, max_tokens=13)"


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


@dataclass(frozen=True)
class Model:
    """A tiny model of an architecture, as the library has it and as it is traced."""

    specimen: Specimen
    traced: Module

    @staticmethod
    @cache
    def of(name: str) -> Model:
        """The model of a name; traced once a session."""
        specimen = Specimen.of(name)
        return Model(specimen, import_tiny(specimen.config, specimen.model)[0])

    def program(self) -> Program:
        """Lowered, as the target's own pipeline has it, with small pages."""
        return lower(run_pipeline(self.traced, self.pipeline())[0])

    def pipeline(self) -> str:
        """The target's own, but for the plan of its caches."""
        return ", ".join([*CudaBackend.pipeline[:-1], PLAN])

    def engine(self, program: Program, limits: Limits = LIMITS, device: str = "cpu") -> Counted:
        """An engine on weights as they are."""
        checkpoint, m = LiveCheckpoint(self.specimen.model), program.module

        def weight(p: Param, layer: int | None) -> Operand:
            return operand_of(value_of(p, layer, checkpoint, m), torch.device(device))

        made = pools(m, limits, CONTEXT)
        return Counted(program, weight, made, limits, CONTEXT, device)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of a whole sequence [T, vocab], by the interpreter on the program as it is traced."""
        with torch.inference_mode():
            run = Interpreter(self.traced, LiveCheckpoint(self.specimen.model))
            return run(tokens.int(), Seqs.of([len(tokens)]))[0]

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
