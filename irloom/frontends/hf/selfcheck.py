"""Each import checks itself: a tiny model of the same architecture, library against imported graph."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from irloom.frontends.hf.capture import capture
from irloom.frontends.hf.importer import import_graph
from irloom.frontends.hf.live import LiveCheckpoint
from irloom.frontends.hf.randomized import randomized
from irloom.frontends.hf.skeleton import skeleton
from irloom.frontends.hf.tiny import tiny_config
from irloom.ir.errors import TraceError
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import Seqs

LENGTHS = (26, 1, 14)
"""Tokens of the sequences that are packed: more than a tiny window, fewer than traced, and one alone."""

TOLERANCE = 1e-4


def check_architecture(config: Any) -> float:
    """The largest difference of logits, relative to the largest logit; ``TraceError`` past the tolerance."""
    small = tiny_config(config)
    try:
        model = skeleton(small, torch.float32)
        module = import_graph(capture(model), model, "tiny")
    except TraceError as error:
        error.at("while checking the architecture on a tiny model of its kind")
        raise
    live = randomized(small)
    ids = torch.randint(
        3, small.get_text_config(decoder=True).vocab_size, (sum(LENGTHS),), generator=_generator(1)
    )
    with torch.inference_mode():
        expected = torch.cat([library_logits(live, part) for part in ids.split(LENGTHS)])
        (ours,) = Interpreter(module, LiveCheckpoint(live))(ids.int(), Seqs.of(LENGTHS))
    error = (ours - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    if not error <= TOLERANCE:
        raise TraceError(
            f"{type(config).__name__}: on a tiny model its logits differ from the library's by {error:.1e}"
            f" (allowed {TOLERANCE:.0e})",
            hint="the architecture does something that irloom misreads; please report it",
        )
    return error


def library_logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The library's own logits f32[T, V] of one sequence."""
    plain = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    out = model(input_ids=ids[None], **plain)
    return getattr(out, "logits", out)[0].float()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
