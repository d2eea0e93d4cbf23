"""Tiny models on a ``CudaEngine``, beside the interpreter: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import torch

from irloom.backends.caches import empty_caches
from irloom.backends.core import Limits
from irloom.backends.cuda.backend import CudaBackend
from irloom.backends.cuda.engine import CudaEngine
from irloom.backends.cuda.lower import lower
from irloom.backends.cuda.program import Program
from irloom.backends.cuda.quantized import Operand
from irloom.backends.cuda.weights import bound
from irloom.backends.pools import pools
from irloom.driver.core import trace
from irloom.frontends.hf.randomized import randomized
from irloom.frontends.hf.selfcheck import import_tiny
from irloom.ir.graph import Module, Param
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import Seqs
from irloom.passes import run_pipeline
from irloom.runtime.core import Batch
from irloom.zoo.models import Specimen, tiny
from irloom.zoo.serve import Script, Served, rms, serve
from tests.backends.serving import CONTEXT, LIMITS, SPANS, TinyModel

PLAN = f"kv-plan(page=8, {SPANS})"
EXPERTS = (
    ("num_experts_per_tok", "num_experts"),
    ("num_experts_per_tok", "num_local_experts"),
    ("num_experts_per_tok", "n_routed_experts"),
    ("topk_group", "n_group"),
)
"""What configs call those that are chosen, and all that there are."""
ROUNDINGS = 1.5
"""Times the interpreter's distance from f32 that the same roundings in another order come to: 0.6 to 1.3."""


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
        return lower(self.final(self.traced))

    def final(self, traced: Module, *more: str) -> Module:
        """What is lowered; ``more`` passes last: weights round as it has them, joined or absorbed."""
        return run_pipeline(traced, ", ".join([self.pipeline(), *more]))[0]

    def pipeline(self) -> str:
        """The target's own, but for the plan of its caches."""
        return ", ".join([*CudaBackend.pipeline[:-1], PLAN])

    def engine(self, program: Program, limits: Limits = LIMITS, device: str = "cpu") -> Counted:
        """An engine on weights as one that is built has them."""
        m, wanted = program.module, bound(program)

        def weight(p: Param, layer: int | None) -> Operand:
            w = wanted[p, layer]
            parts = w.parts(w.value(self.checkpoint, m.consts))
            return w.made({name: t.contiguous().to(device) for name, t in zip(w.tensors, parts, strict=True)})

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


@dataclass(frozen=True)
class Half(Model):
    """A model whose program is of bf16, beside the same one of f32; ``more`` passes change both.

    Routers choose all experts: where one is as good as another, a rounding would move logits by any amount.
    """

    half: Module
    more: tuple[str, ...] = ()

    @staticmethod
    @cache
    def bf16(name: str, *more: str) -> Half:
        """The tiny model of a name."""
        specimen, traced, half = _both(name)
        return Half(specimen, traced, half, more)

    def program(self) -> Program:
        return lower(self.final(self.half, *self.more))

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._logits(self.traced, tokens)

    def usual(self, scripts: list[Script]) -> float:
        """How far the interpreter's logits in bf16 are off those in f32: ``Served.rms`` of all tokens."""
        found = [self._logits(self.half, s.tokens) for s in scripts]
        return rms(torch.cat(found), torch.cat([s.expected for s in scripts]))

    def far(self, engine: Counted, scripts: list[Script]) -> tuple[float, str]:
        """How many times as far as the interpreter's an engine's logits are, and where the farthest is."""
        found = self.served(engine, scripts)
        return found.rms / self.usual(scripts), found.where

    def _logits(self, traced: Module, tokens: torch.Tensor) -> torch.Tensor:
        """By the interpreter on the final program, which has those of a sequence's last token: so each part
        that begins the tokens is a sequence.
        """
        m, counts = self.final(traced, *self.more), range(1, len(tokens) + 1)
        pages = {p.name: -(-len(tokens) // p.page) for p in pools(m, LIMITS, CONTEXT)}
        tables = {k: torch.arange(len(tokens) * n, dtype=torch.int32).view(-1, n) for k, n in pages.items()}
        caches = empty_caches(m, {k: len(tokens) * n for k, n in pages.items()}, "cpu")
        given = [caches[p.name] for p in m.main.data if p.name in caches]
        ids, seqs = torch.cat([tokens[:n] for n in counts]), Seqs.of(counts, tables=tables)
        with torch.inference_mode():
            return Interpreter(m, self.checkpoint)(ids.int(), seqs, *given)[0].float()


@cache
def _both(name: str) -> tuple[Specimen, Module, Module]:
    """A tiny model, and its programs of f32 and of bf16."""
    config = tiny(name)
    text = config.get_text_config(decoder=True)
    for few, all_ in EXPERTS:
        if hasattr(text, few) and hasattr(text, all_):
            setattr(text, few, getattr(text, all_))
    specimen = Specimen(name, config, randomized(config))
    return specimen, import_tiny(config, specimen.model)[0], trace(config, "bf16")
