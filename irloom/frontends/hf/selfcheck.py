"""Each import checks itself: a tiny model of the same architecture, library against imported graph."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from irloom.frontends.hf.capture import capture
from irloom.frontends.hf.importer import import_graph
from irloom.frontends.hf.live import LiveCheckpoint
from irloom.frontends.hf.skeleton import build, causal_config, meta_parameters, skeleton
from irloom.frontends.hf.tiny import tiny_config
from irloom.ir.errors import TraceError
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import Seqs

LENGTHS = (26, 1, 14)
"""Tokens of the sequences that are packed: more than a tiny window, fewer than traced, and one alone."""

TOLERANCE = 1e-4


def check_architecture(config: Any) -> float:
    """The largest difference of logits, relative to the largest logit; ``TraceError`` past the tolerance."""
    small = causal_config(tiny_config(config))
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
    return model(input_ids=ids[None], use_cache=False).logits[0].float()


def randomized(config: Any, seed: int = 0) -> nn.Module:
    """A model on the CPU in f32 with weights large enough for a wrong mask, rotation or bias to show.

    Matrices keep the size of activations, norm weights are near their start, biases near 0.
    """
    with meta_parameters():
        model = build(config, torch.float32)
    generator = _generator(seed)
    tied: dict[int, nn.Parameter] = {}
    for path, param in list(model.named_parameters(remove_duplicate=False)):
        owner, _, name = path.rpartition(".")
        if id(param) not in tied:
            values = torch.randn(param.shape, generator=generator)
            scaled = values / math.sqrt(param.shape[-1]) if param.ndim > 1 else 0.1 * values
            start = 1.0 if param.ndim == 1 and name == "weight" else 0.0
            tied[id(param)] = nn.Parameter(scaled + start, requires_grad=False)
        model.get_submodule(owner)._parameters[name] = tied[id(param)]
    return model.eval()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
