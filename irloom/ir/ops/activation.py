"""Activations that no library has as one op of its own, and products with an activation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import IRError
from ..op import op
from .elementwise import promoted


@op("~b -> ~b")
def relu2(x: Tensor) -> Tensor:
    """``max(x, 0) ** 2`` (So et al., 2021)."""
    return x.relu().square()


@op("~b -> ~b")
def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 * x)``: GELU by the logistic function."""
    return x * torch.sigmoid(1.702 * x)


@op("~b -> ~b")
def mish(x: Tensor) -> Tensor:
    """``x * tanh(softplus(x))`` (Misra, 2019)."""
    return F.mish(x)


@op("~b, ~b, ~b, ~b, ~b -> ~b")
def xielu(x: Tensor, above: Tensor, below: Tensor, beta: Tensor, eps: Tensor) -> Tensor:
    """``above * x ** 2 + beta * x`` where ``x > 0``, else ``below * (e ** min(x, eps) - 1 - x) + beta * x``.

    ``above`` and ``below`` are learned curvatures (Huang and Schlag, 2024).
    """
    under = (torch.minimum(x, eps).expm1() - x) * below
    return (torch.where(x > 0, above * x * x, under) + beta * x).to(x.dtype)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": quick_gelu.reference,
    "mish": F.mish,
    "relu": F.relu,
    "relu2": relu2.reference,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
}
"""What a gate may be, by its name."""


def known(name: str, act: object) -> None:
    """``IRError`` where ``act`` is no activation."""
    if act not in ACTIVATIONS:
        raise IRError(f"{name}: act is {act!r}", hint=f"one of {', '.join(ACTIVATIONS)}")


@op("~b, ~b -> ~b")
def act_mul(gate: Tensor, x: Tensor, *, act: str) -> Tensor:
    """``act(gate) * x``, for every activation but those of ``silu_mul`` and ``gelu_mul``."""
    return ACTIVATIONS[act](gate) * x


act_mul.verify(lambda operands, attrs: known("act_mul", attrs["act"]))


@op("*b d, *b d -> *b d")
def clamped_silu_mul(
    gate: Tensor, up: Tensor, *, limit: float, alpha: float = 1.0, shift: float = 0.0
) -> Tensor:
    """``g * sigmoid(alpha * g) * (u + shift)``: ``gate`` is at most ``limit``, ``up`` in [-limit, limit]."""
    g = gate.clamp(max=limit)
    return g * torch.sigmoid(alpha * g) * (up.clamp(-limit, limit) + shift)


@op("t k n, t k -> t n")
def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """The ``k`` rows of each token times their weights, summed: what experts give, or residual streams."""
    return (x * weights.unsqueeze(-1)).sum(1)


weighted_sum.dtype(promoted)
