"""Is each pass right on this model? The program before and after it, on the same seeded sessions.

Weights are the checkpoint's, each in memory once for both sides, or seeded random ones. Inputs are sequences
as a runtime serves them: ragged, packed, cut into chunks and decoded across every window, chunk and page that
the programs have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from irloom.backends.artifact import is_engine
from irloom.backends.core import backend
from irloom.driver import Choice, passes_of
from irloom.frontends.core import Frontend, TraceOptions, frontend_of, source
from irloom.frontends.hf.hub import find
from irloom.frontends.text import Text
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.elem import floating
from irloom.ir.errors import CheckpointError, EngineMismatch
from irloom.ir.graph import Module
from irloom.passes.random_weights import RandomWeights
from irloom.passes.session import MOST, Session, plan_session
from irloom.passes.shared_weights import SharedWeights
from irloom.passes.trial import Trial
from irloom.passes.verified import Progress, Ran, Verified, run_as_far, verify_passes


@dataclass(frozen=True)
class How:
    """On what to verify: the first ``layers``, the ``device``, ``random`` weights drawn with ``seed``.

    ``dtype`` of weights and activations, by default the target's. No sequence is longer than ``tokens``
    needs. ``memory`` bytes of weights are kept, by default half of what is free.
    """

    layers: int | None = None
    device: str = "cpu"
    random: bool = False
    seed: int = 0
    by_layer: bool = False
    dtype: str | None = None
    tokens: int = MOST
    memory: int | None = None
    trust: bool = False


HOW = How()


def verify(
    model: Any, choice: Choice | None = None, how: How = HOW, progress: Progress | None = None
) -> Verified:
    """Check every pass of the chosen pipeline on a path, a hub id or an ``nn.Module``; a row per pass."""
    ran, trial = prepared(model, choice or Choice(), how)
    return verify_passes(ran, trial, progress=progress)


def prepared(model: Any, choice: Choice, how: How) -> tuple[Ran, Trial]:
    """The chosen passes, run on the program of a model, and what to try them on."""
    passes = passes_of(choice)
    m, weights = opened(model, choice, how)
    ran = run_as_far(m, passes)
    return ran, trial_of(ran.modules, weights, how)


def trial_of(
    modules: Sequence[Module], checkpoint: Checkpoint | None, how: How, session: Session | None = None
) -> Trial:
    """Programs on a session, by default one that fits them, with weights of ``checkpoint`` or random ones."""
    device = placed(how.device)
    weights = checkpoint or RandomWeights(modules[:1], how.seed, device)
    session = session or plan_session(modules, how.seed, how.tokens)
    return Trial(session, SharedWeights(weights, device, how.memory), how.by_layer)


def opened(model: Any, choice: Choice, how: How) -> tuple[Module, Checkpoint | None]:
    """The traced program, and its weights; None where they are to be random."""
    front, path = _front(model, how)
    dtype = floating(how.dtype or backend(choice.target).dtype)
    options = TraceOptions(dtype=dtype, layers=how.layers, trust=how.trust)
    m = front.trace(path, options)
    if how.random or isinstance(front, Text):
        return m, None
    return m, front.checkpoint(path, options)


def _front(model: Any, how: How) -> tuple[Frontend, Path]:
    """What reads ``model``, a path, a hub id or an ``nn.Module``, and where it is."""
    if not isinstance(model, (str, Path)):
        return source(model)
    path = find(str(model), how.trust, weights=not how.random)
    if path.name == "config.json":
        path = path.parent
    if is_engine(path):
        raise EngineMismatch(
            f"{path}: an engine's passes have run", hint="verify the model that it was compiled from"
        )
    return frontend_of(path), path


def placed(device: str) -> torch.device:
    """The device that is called so; ``CheckpointError`` where this machine has none."""
    try:
        made = torch.device(device)
    except RuntimeError:
        raise CheckpointError(f"--device {device}: no such device", hint="cpu, cuda or cuda:1") from None
    if made.type == "cuda" and not torch.cuda.is_available():
        raise CheckpointError(f"--device {device}: torch sees no GPU here", hint="--device cpu")
    return made
