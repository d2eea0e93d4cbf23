"""Library models with seeded random weights, in which a wrong mask, rotation, gate or bias shows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from irloom.frontends.hf.skeleton import build

INITIAL = ("A_log", "D", "dt_bias", "time_decay", "time_first", "a_param")
"""Parameters of recurrences, which keep their starting values but for a little: decay would be lost."""


def randomized(config: Any, seed: int = 0) -> nn.Module:
    """A model on the CPU in f32 whose weights are large enough for every part of it to matter.

    The library's own initialization is so small that logits hardly depend on attention. Here matrices keep
    the size of activations, norm weights are near their start, biases near 0.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = build(config, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, param in model.named_parameters():
            if param.is_floating_point():
                _fill(path, param, torch.randn(param.shape, generator=generator))
        for path, buffer in model.named_buffers():
            if "correction_bias" in path:  # of a router: it decides which experts are chosen
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
    return model.eval().requires_grad_(False)


def _fill(path: str, param: nn.Parameter, noise: torch.Tensor) -> None:
    leaf = path.rpartition(".")[2]
    sound = bool(param.isfinite().all()) and param.abs().max().item() < 1e3
    if leaf in INITIAL or "time_mix" in leaf:
        param.copy_(param + 0.05 * noise if sound else 0.05 * noise)
    elif param.ndim > 1:
        param.copy_(noise if "embed" in path else 1.3 * noise / math.sqrt(param.shape[-1]))
    elif leaf.endswith("bias") or "sink" in path:
        param.copy_(0.2 * noise)
    else:
        param.copy_(0.1 * noise + (param if sound else 1.0))
