"""Tiny models on a ``TensorRTEngine`` whose networks run in torch, beside the interpreter."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from irloom.backends.core import START, Limits
from irloom.backends.tensorrt.engine import TensorRTEngine
from irloom.backends.tensorrt.executor import Executor, TorchExecutor
from irloom.backends.tensorrt.forms import value_of
from irloom.backends.tensorrt.lower import Cut, lower
from irloom.backends.tensorrt.network import Network
from irloom.backends.tensorrt.program import Program, Source
from irloom.ir.graph import Param
from irloom.passes import run_pipeline
from irloom.runtime.core import Batch
from irloom.zoo.serve import Script, Served, serve
from tests.backends.serving import CONTEXT, LIMITS, SPANS, TinyModel

PIPELINE = ", ".join([*START, "kv-cache"])
PLANS = {
    "linear": f"kv-plan(layout='linear', {SPANS})",
    "paged": f"kv-plan(page=8, {SPANS})",
}
Wrap = Callable[[Executor], Executor]


class Counted(TensorRTEngine):
    """An engine that keeps its batches."""

    batches: list[Batch]

    def logits(self, batch: Batch) -> torch.Tensor:
        self.batches = [*getattr(self, "batches", []), batch]
        return super().logits(batch)


class Model(TinyModel):
    """A tiny model as it runs on the target."""

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
        checkpoint = self.checkpoint

        def value(source: Source) -> torch.Tensor:
            return value_of(source, checkpoint, program.module).to(device)

        def weight(p: Param) -> torch.Tensor:
            return value(Source(p))

        def executor(network: Network) -> Executor:
            held = {t.name: value(program.weights[t.name]) for t in network.weights}
            return wrap(TorchExecutor(network, held.__getitem__))

        executors = [executor(s.network) for s in program.segments]
        return Counted(program, executors, weight, limits, CONTEXT, device=device, **options)

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
