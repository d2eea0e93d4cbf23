"""Tiny models on a ``TensorRTEngine`` whose networks run in torch, beside the interpreter."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch

from irloom.backends.core import START, Limits
from irloom.backends.tensorrt.engine import TensorRTEngine
from irloom.backends.tensorrt.executor import Executor, TorchExecutor
from irloom.backends.tensorrt.forms import value_of
from irloom.backends.tensorrt.lower import Cut, lower
from irloom.backends.tensorrt.network import Network
from irloom.backends.tensorrt.program import Program, Source
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
PIPELINE = ", ".join([*START, "kv-cache"])
PLANS = {
    "linear": f"kv-plan(layout='linear', context={CONTEXT}, max_seqs=5, max_tokens=13)",
    "paged": f"kv-plan(page=8, context={CONTEXT}, max_seqs=5, max_tokens=13)",
}
Wrap = Callable[[Executor], Executor]


class Counted(TensorRTEngine):
    """An engine that keeps its batches."""

    batches: list[Batch]

    def logits(self, batch: Batch) -> torch.Tensor:
        self.batches = [*getattr(self, "batches", []), batch]
        return super().logits(batch)


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

    def program(self, layout: str = "linear", cut: Cut = "whole") -> Program:
        """Lowered, with its caches in slots or in pages."""
        return lower(run_pipeline(self.traced, f"{PIPELINE}, {PLANS[layout]}")[0], cut)

    def engine(
        self,
        program: Program,
        limits: Limits = LIMITS,
        device: str = "cpu",
        wrap: Wrap = lambda executor: executor,
        **options: bool,
    ) -> Counted:
        """Its networks in torch."""
        checkpoint = LiveCheckpoint(self.specimen.model)

        def value(source: Source) -> torch.Tensor:
            return value_of(source, checkpoint, program.module).to(device)

        def weight(p: Param) -> torch.Tensor:
            return value(Source(p))

        def executor(network: Network) -> Executor:
            held = {t.name: value(program.weights[t.name]) for t in network.weights}
            return wrap(TorchExecutor(network, held.__getitem__))

        executors = [executor(s.network) for s in program.segments]
        return Counted(program, executors, weight, limits, CONTEXT, device=device, **options)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of a whole sequence [T, vocab], by the interpreter on the program as it is traced."""
        with torch.inference_mode():
            run = Interpreter(self.traced, LiveCheckpoint(self.specimen.model))
            return run(tokens.int(), Seqs.of([len(tokens)]))[0]

    def traffic(self, seed: int, requests: int = 12) -> list[Script]:
        """Requests that arrive while others run, over at least 50 steps; two go before those that run."""
        draw = random.Random(seed)
        made = list[Script]()
        for i in range(requests):
            prompt = draw.choice([1, 2, 7, 19, 40])
            tokens = self.specimen.draw(prompt + (draw.randint(1, 25) if i else 50), 100 * seed + i)
            urgent = i in (3, 7)
            arrives = 0 if not i else 10 if urgent else draw.randint(0, 40)
            made.append(Script(tokens, prompt, self.logits(tokens), arrives, -1 if urgent else 0))
        return made

    def served(self, engine: Counted, scripts: list[Script]) -> Served:
        """Every step's logits beside the interpreter's."""
        served = serve(engine, scripts)
        assert len(engine.batches) >= 50
        return served


FEW = replace(LIMITS, max_seqs=2)
