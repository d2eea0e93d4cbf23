"""Does an engine compute what its program says? Both serve the same sequences, step by step, side by side.

The reference engine interprets the program that the target has lowered: same passes, same caches, same
batches, so what differs is the lowering. The runtime's scheduler cuts prompts into chunks and mixes them with
decodes. Activations are not rounded to eight bits, as engines may do for quantized weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from irloom import __version__
from irloom.backends.artifact import EngineReader, EngineWriter, Manifest
from irloom.backends.core import Limits, backend, quiet
from irloom.driver import Choice, available, passes_of
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.graph import Module
from irloom.passes import spell
from irloom.passes.random_weights import RandomWeights
from irloom.passes.report import Report, report
from irloom.passes.session import Session, plan_session
from irloom.passes.trial import Compared
from irloom.passes.verified import Row, run_as_far
from irloom.runtime.core import Batch
from irloom.zoo.serve import Script, Stepped, serve

from .core import HOW, How, opened

ALLOWED = 2e-4
"""Of the largest logit of a token in f32: a kernel adds in other parts than the reference does."""
STEP, SEQS = 32, 4
"""Tokens and sequences of a step: fewer than there are, so that prompts are cut and sequences wait."""


def verify_engine(model: str | Path, choice: Choice | None = None, how: How = HOW) -> Row:
    """The engine of ``choice.target`` against the interpreter, on every step of a session."""
    choice = choice or Choice()
    m, weights = opened(model, choice, how)
    ran = run_as_far(m, passes_of(choice))
    if ran.error:
        raise ran.error
    source = weights or RandomWeights([m], how.seed)
    session = plan_session(ran.modules, how.seed, how.tokens)
    with tempfile.TemporaryDirectory(prefix="irloom-verify-") as folder:
        steps = [spell(p) for p in ran.passes]
        pair = _Pair(
            _engine("reference", ran.modules[-1], source, steps, session, Path(folder) / "reference"),
            _engine(available(choice.target), ran.modules[-1], source, steps, session, Path(folder) / "own"),
        )
        serve(pair, _scripts(session, pair.vocab))
    worst = max(pair.reports, key=lambda r: r.excess)
    rows = sum(r.rows for r in pair.reports)
    return Row(
        f"engine ({choice.target})", f"engine ({choice.target})", 0, 0.0, Compared(replace(worst, rows=rows))
    )


def _engine(
    target: str, m: Module, weights: Checkpoint, steps: Sequence[str], session: Session, out: Path
) -> Any:
    context = max(session.lengths) + 8
    settings = {"max_context": context, "eos": [], "int8_activations": False}
    manifest = Manifest(target, m.model, list(steps), {"irloom": __version__}, {}, settings=settings)
    with EngineWriter(out, manifest) as writer:
        backend(target).build(m, weights, writer, quiet)
    limits = Limits(max_tokens=STEP, max_seqs=SEQS, max_context=context)
    return backend(target).open(EngineReader(out), limits)


def _scripts(session: Session, vocab: int) -> list[Script]:
    """The session's sequences as requests; what they give is compared by the pair, not here."""
    g = torch.Generator().manual_seed(session.seed)
    first = [next(n for n in each if n) for each in zip(*session.steps, strict=True)]
    arrives = [next(i for i, n in enumerate(each) if n) for each in zip(*session.steps, strict=True)]
    return [
        Script(torch.randint(vocab, (n,), generator=g), prompt, torch.zeros(n, 1), at)
        for n, prompt, at in zip(session.lengths, first, arrives, strict=True)
    ]


class _Pair:
    """Two engines that take every step together; ``reports`` tells how far apart they were in each."""

    def __init__(self, reference: Stepped, own: Stepped) -> None:
        self.reference, self.own = reference, own
        self.vocab, self.pools = own.vocab, own.pools
        self.max_tokens, self.max_seqs, self.max_context = own.max_tokens, own.max_seqs, own.max_context
        self.reports: list[Report] = []

    def logits(self, batch: Batch) -> torch.Tensor:
        want, got = self.reference.logits(batch), self.own.logits(batch).clone()
        where = f"step {len(self.reports)}, {len(batch.tokens)} tokens of {len(batch.context)} sequences"
        self.reports.append(report(want, got.to(want.dtype), where, ALLOWED, logits=True))
        return want

    def step(self, batch: Batch) -> Any:
        raise NotImplementedError("tokens are given, not sampled")
