"""Mixtures of experts: few tokens by products of single rows, many sorted by expert into matrix products."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch

from irloom.backends.cuda.alike import alike
from irloom.backends.cuda.quantized import Operand
from irloom.backends.cuda.step import Step
from irloom.backends.cuda.tuning import choose, settled
from irloom.backends.cuda.work import Workspace

from .align import align
from .boxed_experts import PAIRS, Boxed, boxed_product, has_tiles
from .form import Gate
from .gather import PRODUCTS, SUMS, Gather, gather_product, gather_sum
from .grouped import Tile, combine, grouped_product, tiles
from .stack import Stack

T = TypeVar("T", bound=Gather | Tile)
Way = Gather | Tile | Boxed
Ways = tuple[Way, Way]

SILU = Gate()

FEW = 16
"""Tokens up to which products of single rows are tried."""

MANY = 48
"""Rows of an expert on average from which the copy engine is tried."""

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
    ways = (how, how) if how else _ways(mixture, out, x, weights)
    mixture.run(out, x, index, weights, residual, _real(index, step), ways, work)


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
            case Tile() as first, Tile() as second:
                experts = self.up.dims[0]
                blocks = align(index, real, index.shape, experts, first.height, work, every=False)
                hidden = work.take((*index.shape, self.up.dims[1] // 2), x.dtype)
                grouped_product(hidden, x, blocks, self.up, self.up_bias, self.gate, first)
                made = work.take((*index.shape, out.shape[1]), x.dtype)
                grouped_product(made, hidden, blocks, self.down, self.down_bias, None, second)
                combine(out, made, index, weights, experts, residual, real)
            case Boxed() as first, Boxed() as second:
                experts = self.up.dims[0]
                blocks = align(index, real, index.shape, experts, first.height, work, every=False)
                hidden = work.take((len(blocks.rows), self.up.dims[1] // 2), x.dtype)
                boxed_product(hidden, x, blocks, self.up, self.up_bias, self.gate, index.shape, first)
                made = work.take((*index.shape, out.shape[1]), x.dtype)
                boxed_product(made, hidden, blocks, self.down, self.down_bias, None, index.shape, second)
                combine(out, made, index, weights, experts, residual, real)
            case _:
                raise TypeError(f"products that do not go together: {ways}")


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
    way = how or _way("experts", _all(x, index.shape, stack), x, index.shape, stack, bias, None)
    _product(out, x, index, stack, bias, _real(index, step), None, way, work)


def head_linear(out: torch.Tensor, x: torch.Tensor, weight: Operand, *, work: Workspace) -> None:
    """The op ``head_linear``: ``out`` [t, h, n], ``x`` [t, h, k], ``weight`` [h, n, k].

    A head is an expert that every token chooses. Many rows of plain elements are a product of the library.
    """
    if len(x) > FEW and not alike() and isinstance(weight, torch.Tensor) and weight.dtype == x.dtype:
        torch.bmm(x.transpose(0, 1), weight.transpose(1, 2), out=out.transpose(0, 1))
        return
    stack, dims = Stack(weight), x.shape[:2]
    way = INVARIANT if alike() else _way("experts", _all(x, dims, stack), x, dims, stack, None, None)
    _product(out, x, None, stack, None, None, None, way, work)


def weighted_sum(out: torch.Tensor, x: torch.Tensor, weights: torch.Tensor) -> None:
    """The op ``weighted_sum``: ``out`` [t, n], ``x`` [t, k, n], ``weights`` [t, k]."""
    combine(out, x, None, weights, 0, None, None)


def _real(index: torch.Tensor, step: Step | None) -> torch.Tensor | None:
    """How many rows are real, where rows are the tokens of a step."""
    return step.real if step is not None and step.tokens == len(index) else None


def _product(
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


def _ways(mixture: Mixture, out: torch.Tensor, x: torch.Tensor, weights: torch.Tensor) -> Ways:
    """How both products of a mixture run fastest: the best of rows, the best of tiles, or fed by copies."""
    up, down, gate, dims = mixture.up, mixture.down, mixture.gate, weights.shape
    key = *_key(x, dims, up, gate), *_key(x, dims, down, None)
    if known := settled("mixture", key):
        return known
    ways: list[Ways] = []
    hidden = torch.zeros(*dims, up.dims[1] // 2, dtype=x.dtype, device=x.device)
    if dims[0] <= FEW:
        first = _way("experts in rows", PRODUCTS, x, dims, up, mixture.up_bias, gate)
        ways.append((first, _sum_way(out, hidden, weights, down, mixture.down_bias)))
    if dims[0] > 1 or not ways:
        tiles = _tiles(x, dims, up)
        first = _way("experts in tiles", tiles, x, dims, up, mixture.up_bias, gate)
        same = [t for t in tiles if t.height == first.height]
        name = f"experts in tiles of {first.height}"
        ways.append((first, _way(name, same, hidden, dims, down, mixture.down_bias, None)))
    if dims[0] * dims[1] >= MANY * up.dims[0] and has_tiles(x, up, down):
        ways += PAIRS
    index = _spread(*dims, up.dims[0], x.device)
    rooms = [Workspace(x.device) for _ in ways]

    def run(way: Ways) -> None:
        room = rooms[ways.index(way)]
        room.reset()
        mixture.run(torch.empty_like(out), x, index, weights, None, None, way, room)

    return choose("mixture", key, ways, run)


def _way(
    name: str,
    candidates: Sequence[T],
    x: torch.Tensor,
    dims: Sequence[int],
    stack: Stack,
    bias: torch.Tensor | None,
    gate: Gate | None,
) -> T:
    """How products of ``x`` for ``dims`` choices [t, k] run fastest."""
    rooms = defaultdict[Gather | Tile, Workspace](lambda: Workspace(x.device))

    def run(how: T) -> None:
        rooms[how].reset()
        out = torch.empty(*dims, stack.dims[1] // (2 if gate else 1), dtype=x.dtype, device=x.device)
        _product(out, x, _spread(*dims, stack.dims[0], x.device), stack, bias, None, gate, how, rooms[how])

    return choose(name, _key(x, dims, stack, gate), candidates, run)


def _sum_way(
    out: torch.Tensor,
    hidden: torch.Tensor,
    weights: torch.Tensor,
    stack: Stack,
    bias: torch.Tensor | None,
) -> Gather:
    """How the weighted sum of products runs fastest."""
    dims = hidden.shape[:2]

    def run(how: Gather) -> None:
        index = _spread(*dims, stack.dims[0], hidden.device)
        gather_sum(torch.empty_like(out), hidden, index, weights, stack, bias, None, None, how)

    return choose("experts' sum", _key(hidden, dims, stack, None), SUMS, run)


def _all(x: torch.Tensor, dims: Sequence[int], stack: Stack) -> tuple[Gather | Tile, ...]:
    """What to try for products alone."""
    return (*(PRODUCTS if dims[0] <= FEW else ()), *(_tiles(x, dims, stack) if dims[0] > 2 else ()))


def _tiles(x: torch.Tensor, dims: Sequence[int], stack: Stack) -> tuple[Tile, ...]:
    return tiles(_bucket(dims[0]) * dims[1] / stack.dims[0], x.dtype)


@cache
def _spread(tokens: int, k: int, experts: int, device: torch.device) -> torch.Tensor:
    """Choices by chance: those of a step that warms up may all go to one expert, and none fill blocks."""
    draw = torch.Generator().manual_seed(0)
    scores = torch.rand(tokens, max(experts, k), generator=draw)
    return (scores.topk(k, 1).indices % experts).int().to(device)


def _key(x: torch.Tensor, dims: Sequence[int], stack: Stack, gate: Gate | None) -> tuple[object, ...]:
    """What decides how long a product takes."""
    return _bucket(dims[0]), dims[1], *stack.dims, str(x.dtype), str(stack.values.dtype), stack.group, gate


def _bucket(tokens: int) -> int:
    """So many tokens run as a power of two does."""
    return 1 << (tokens - 1).bit_length()
