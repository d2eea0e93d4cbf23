"""Mixtures of experts: few tokens by products of single rows, many sorted by expert into matrix products."""

from __future__ import annotations

import torch

from irloom.backends.cuda.alike import alike
from irloom.backends.cuda.quantized import Operand
from irloom.backends.cuda.step import Step, real_rows
from irloom.backends.cuda.work import Workspace

from .expert_ways import FEW, mixture_ways, product_way
from .form import Gate
from .gather import Gather
from .grouped import Tile, combine
from .mixture import Mixture, Way, expert_product
from .stack import Stack

SILU = Gate()

INVARIANT = Tile(16, 128, 64, 4, 4, swap=True)
"""How products may always run where results must be the same whatever else is in a batch."""


def moe(
    out: torch.Tensor,
    x: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Operand,
    down: Operand,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    gate: Gate = SILU,
    work: Workspace,
    step: Step | None = None,
    how: Way | None = None,
) -> None:
    """The op ``moe``, plus ``residual`` [t, n] where given; sums in f32, the gated rounded as ``x`` is.

    ``index`` i32 and ``weights`` are [t, k]. Rows that only fill the bucket of ``step`` choose
    no expert, and get the residual or 0. Products run as is fastest, or all as ``how`` says: then a token's
    result does not depend on the rest of its batch, only on that.
    """
    mixture = Mixture(Stack(gate_up), Stack(down), gate_up_bias, down_bias, gate)
    index, weights = index.contiguous(), weights.contiguous()  # as routers write them
    how = how or (INVARIANT if alike() else None)
    ways = (how, how) if how else mixture_ways(mixture, out, x, weights)
    mixture.run(out, x, index, weights, residual, real_rows(step, len(index)), ways, work)


def expert_linear(
    out: torch.Tensor,
    x: torch.Tensor,
    index: torch.Tensor,
    weight: Operand,
    bias: torch.Tensor | None = None,
    *,
    work: Workspace,
    step: Step | None = None,
    how: Gather | Tile | None = None,
) -> None:
    """The op ``expert_linear``: ``out`` [t, k, n], ``x`` [t, h] or [t, k, h]; the rest as ``moe`` has it."""
    stack, index = Stack(weight), index.contiguous()
    how = how or (INVARIANT if alike() else None)
    way = how or product_way(x, index.shape, stack, bias)
    expert_product(out, x, index, stack, bias, real_rows(step, len(index)), None, way, work)


def head_linear(out: torch.Tensor, x: torch.Tensor, weight: Operand, *, work: Workspace) -> None:
    """The op ``head_linear``: ``out`` [t, h, n], ``x`` [t, h, k], ``weight`` [h, n, k].

    A head is an expert that every token chooses. Many rows of plain elements are a product of the library.
    """
    if len(x) > FEW and not alike() and isinstance(weight, torch.Tensor) and weight.dtype == x.dtype:
        torch.bmm(x.transpose(0, 1), weight.transpose(1, 2), out=out.transpose(0, 1))
        return
    stack, dims = Stack(weight), x.shape[:2]
    way = INVARIANT if alike() else product_way(x, dims, stack, None)
    expert_product(out, x, None, stack, None, None, None, way, work)


def weighted_sum(out: torch.Tensor, x: torch.Tensor, weights: torch.Tensor) -> None:
    """The op ``weighted_sum``: ``out`` [t, n], ``x`` [t, k, n], ``weights`` [t, k]."""
    combine(out, x, None, weights, 0, None, None)
