"""Models that are written in a test, built into engines, and served."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from irloom.backends.artifact import EngineReader, EngineWriter, Manifest
from irloom.backends.core import Limits, backend, quiet
from irloom.backends.machine import compiler
from irloom.ir.checkpoint import RandomCheckpoint
from irloom.ir.graph import Module
from irloom.ir.interp import Interpreter
from irloom.ir.parse import parse
from irloom.ir.seqs import Seqs
from irloom.passes import run_pipeline
from irloom.runtime.loop import Loop
from irloom.runtime.request import SamplingParams

GREEDY = SamplingParams(max_tokens=20, temperature=0.0)
TARGETS = ["reference", *(["cpu"] if compiler() else [])]
CONTEXT, PAGE, EVERY = 96, 4, 8


@dataclass(frozen=True)
class Written:
    """The text of a model, without caches, its weights, and passes to leave out of a target's pipeline."""

    text: str
    checkpoint: RandomCheckpoint
    without: tuple[str, ...] = ()

    def alone(self, prompt: list[int]) -> list[int]:
        """Greedy tokens by the text itself, which sees the whole sequence every time."""
        run, tokens = Interpreter(parse(self.text), self.checkpoint), list(prompt)
        for _ in range(GREEDY.max_tokens or 0):
            (logits,) = run(torch.tensor(tokens, dtype=torch.int32), Seqs.of([len(tokens)]))
            tokens.append(int(logits[-1].argmax()))
        return tokens[len(prompt) :]

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of every token of one sequence, f32[T, V], by the text itself."""
        (logits,) = Interpreter(parse(self.text), self.checkpoint)(tokens.int(), Seqs.of([len(tokens)]))
        return logits

    def planned(self, target: str) -> Module:
        """What the pipeline of a target makes of it, with small pages."""
        plan = f"kv-plan(page={PAGE}, snapshot={EVERY})"
        steps = [s for s in backend(target).pipeline if s not in self.without]
        steps = [plan if step == "kv-plan" else step for step in steps]
        return run_pipeline(parse(self.text), steps)[0]

    def build(self, target: str, out: Path) -> Path:
        """An engine of it."""
        settings = {"max_context": CONTEXT, "int8_activations": False}
        with EngineWriter(out, Manifest(target, "written", [], {}, {}, settings=settings)) as writer:
            backend(target).build(self.planned(target), self.checkpoint, writer, quiet)
        return out


def serve(engine: Path, **limits: int) -> Loop:
    """A loop on an engine."""
    reader = EngineReader(engine)
    return Loop(backend(reader.manifest.target).open(reader, replace(Limits(threads=1), **limits)))


def answers(loop: Loop, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens; afterwards no page is in use."""
    outputs = loop.generate(prompts, GREEDY)
    loop.check()
    assert loop.pages.in_use == 0
    return [output.token_ids for output in outputs]
