"""Products of experts in a given way: of single rows, of tiles of sorted ones, or fed by the copy engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from irloom.backends.cuda.work import Workspace

from .align import Blocks, align
from .boxed_experts import Boxed, boxed_product
from .form import Gate
from .gather import Gather, gather_product, gather_sum
from .grouped import Tile, combine, grouped_product
from .stack import Stack

Way = Gather | Tile | Boxed
Ways = tuple[Way, Way]


@dataclass(frozen=True, eq=False)
class Mixture:
    """The matrices of experts, and what is between their products."""

    up: Stack
    down: Stack
    up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    gate: Gate

    def run(
        self,
        out: torch.Tensor,
        x: torch.Tensor,
        index: torch.Tensor,
        weights: torch.Tensor,
        residual: torch.Tensor | None,
        real: torch.Tensor | None,
        ways: Ways,
        work: Workspace,
    ) -> None:
        """``moe``, its products in these ``ways``: both of rows, or of tiles of one height, or of boxes."""
        match ways:
            case Gather() as first, Gather() as second:
                hidden = work.take((*index.shape, self.up.dims[1] // 2), x.dtype)
                gather_product(hidden, x, index, self.up, self.up_bias, real, self.gate, first)
                gather_sum(
                    out, hidden, index, weights, self.down, self.down_bias, residual, real, second
                )  # fmt: skip
            case (Tile(), Tile()) | (Boxed(), Boxed()):
                self._sorted(out, x, index, weights, residual, real, ways, work)
            case _:
                raise TypeError(f"products that do not go together: {ways}")

    def _sorted(
        self,
        out: torch.Tensor,
        x: torch.Tensor,
        index: torch.Tensor,
        weights: torch.Tensor,
        residual: torch.Tensor | None,
        real: torch.Tensor | None,
        ways: tuple[Tile, Tile] | tuple[Boxed, Boxed],
        work: Workspace,
    ) -> None:
        """``run``, with choices sorted by expert; what the copy engine is to read stays in that order."""
        first, second = ways
        experts, dims = self.up.dims[0], index.shape
        blocks = align(index, real, dims, experts, first.height, work, every=False)
        rows = (len(blocks.rows),) if isinstance(first, Boxed) else dims
        hidden = work.take((*rows, self.up.dims[1] // 2), x.dtype)
        _blocks_product(hidden, x, blocks, self.up, self.up_bias, self.gate, dims, first)
        made = work.take((*dims, out.shape[1]), x.dtype)
        _blocks_product(made, hidden, blocks, self.down, self.down_bias, None, dims, second)
        combine(out, made, index, weights, experts, residual, real)


def _blocks_product(
    out: torch.Tensor,
    x: torch.Tensor,
    blocks: Blocks,
    stack: Stack,
    bias: torch.Tensor | None,
    gate: Gate | None,
    dims: Sequence[int],
    how: Tile | Boxed,
) -> None:
    """``boxed_product`` or ``grouped_product``, as ``how`` is of one or the other."""
    if isinstance(how, Boxed):
        boxed_product(out, x, blocks, stack, bias, gate, dims, how)
    else:
        grouped_product(out, x, blocks, stack, bias, gate, how)


def expert_product(
    out: torch.Tensor,
    x: torch.Tensor,
    index: torch.Tensor | None,
    stack: Stack,
    bias: torch.Tensor | None,
    real: torch.Tensor | None,
    gate: Gate | None,
    how: Gather | Tile,
    work: Workspace,
) -> None:
    """``out`` [t, k, n] in the way ``how``, 0 for choices of no expert."""
    if isinstance(how, Gather):
        gather_product(out, x, index, stack, bias, real, gate, how)
    else:
        blocks = align(index, real, out.shape[:2], stack.dims[0], how.height, work, every=True)
        grouped_product(out, x, blocks, stack, bias, gate, how)
