"""Mixtures of experts: few tokens by products of single rows, many sorted by expert into matrix products."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import torch

from irloom.backends.cuda.quantized import Operand
from irloom.backends.cuda.step import Step
from irloom.backends.cuda.tuning import choose
from irloom.backends.cuda.work import Workspace

from .align import align
from .form import Gate
from .gather import PRODUCTS, SUMS, Gather, gather_product, gather_sum
from .grouped import Tile, combine, grouped_product, tiles
from .stack import Stack

SILU = Gate()

FEW = 16
"""Tokens up to which products of single rows are tried."""

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
    how: Gather | Tile | None = None,
) -> None:
    """The op ``moe``, plus ``residual`` [t, n] where given; sums in f32, the gated rounded as ``x`` is.

    ``index`` i32 and ``weights`` are [t, k]. Rows that only fill the bucket of ``step`` choose
    no expert, and get the residual or 0. Products run as is fastest, or all as ``how`` says: then a token's
    result does not depend on the rest of its batch, only on that.
    """
    first, second = Stack(gate_up), Stack(down)
    index, weights = index.contiguous(), weights.contiguous()  # as routers write them
    real = _real(index, step)
    hidden = work.take((*index.shape, first.dims[1] // 2), x.dtype)
    way = how or _way(x, index.shape, first, gate_up_bias, gate)
    if isinstance(way, Gather):
        gather_product(hidden, x, index, first, gate_up_bias, real, gate, way)
        then = way if how else _sum_way(out, hidden, weights, second, down_bias)
        gather_sum(out, hidden, index, weights, second, down_bias, residual, real, then)
        return
    blocks = align(index, real, index.shape, first.dims[0], way.height, work, every=False)
    grouped_product(hidden, x, blocks, first, gate_up_bias, gate, way)
    made = work.take((*index.shape, out.shape[1]), x.dtype)
    way = way if how else _tile_after(way, hidden, second, down_bias)
    grouped_product(made, hidden, blocks, second, down_bias, None, way)
    combine(out, made, index, weights, first.dims[0], residual, real)


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
    way = how or _way(x, index.shape, stack, bias, None)
    _product(out, x, index, stack, bias, _real(index, step), None, way, work)


def head_linear(out: torch.Tensor, x: torch.Tensor, weight: Operand, *, work: Workspace) -> None:
    """The op ``head_linear``: ``out`` [t, h, n], ``x`` [t, h, k], ``weight`` [h, n, k].

    A head is an expert that every token chooses. Many rows of plain elements are a product of the library.
    """
    if len(x) > FEW and isinstance(weight, torch.Tensor) and weight.dtype == x.dtype:
        torch.bmm(x.transpose(0, 1), weight.transpose(1, 2), out=out.transpose(0, 1))
        return
    stack = Stack(weight)
    _product(out, x, None, stack, None, None, None, _way(x, x.shape[:2], stack, None, None), work)


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


def _way(
    x: torch.Tensor, dims: Sequence[int], stack: Stack, bias: torch.Tensor | None, gate: Gate | None
) -> Gather | Tile:
    """How products of ``x`` for ``dims`` choices [t, k] run fastest."""
    few = PRODUCTS if dims[0] <= FEW else ()
    many = _tiles(x, dims, stack) if dims[0] > 2 or not few else ()

    rooms = defaultdict[Gather | Tile, Workspace](lambda: Workspace(x.device))

    def run(how: Gather | Tile) -> None:
        rooms[how].reset()
        out = torch.empty(*dims, stack.dims[1] // (2 if gate else 1), dtype=x.dtype, device=x.device)
        _product(out, x, _spread(*dims, stack.dims[0], x.device), stack, bias, None, gate, how, rooms[how])

    return choose("experts", _key(x, dims, stack, gate), (*few, *many), run)


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

    return choose("experts sum", _key(hidden, dims, stack, None), SUMS, run)


def _tile_after(first: Tile, hidden: torch.Tensor, stack: Stack, bias: torch.Tensor | None) -> Tile:
    """How the second product runs fastest on blocks that were made for the tile ``first``."""
    dims = hidden.shape[:2]
    same = [t for t in _tiles(hidden, dims, stack) if t.height == first.height]

    rooms = defaultdict[Tile, Workspace](lambda: Workspace(hidden.device))

    def run(how: Tile) -> None:
        rooms[how].reset()
        made = torch.empty(*dims, stack.dims[1], dtype=hidden.dtype, device=hidden.device)
        index = _spread(*dims, stack.dims[0], hidden.device)
        _product(made, hidden, index, stack, bias, None, None, how, rooms[how])

    return choose("experts then", (*_key(hidden, dims, stack, None), first.height), same, run)


def _tiles(x: torch.Tensor, dims: Sequence[int], stack: Stack) -> tuple[Tile, ...]:
    return tiles(_bucket(dims[0]) * dims[1] / stack.dims[0], x.dtype)


@cache
def _spread(tokens: int, k: int, experts: int, device: torch.device) -> torch.Tensor:
    """Choices that go to all experts alike: those of a step that warms up may all go to one."""
    choices = torch.arange(tokens * k, dtype=torch.int32, device=device)
    return (choices % experts).view(tokens, k)


def _key(x: torch.Tensor, dims: Sequence[int], stack: Stack, gate: Gate | None) -> tuple[object, ...]:
    """What decides how long a product takes."""
    return _bucket(dims[0]), dims[1], *stack.dims, str(x.dtype), str(stack.values.dtype), stack.group, gate


def _bucket(tokens: int) -> int:
    """So many tokens run as a power of two does."""
    return 1 << (tokens - 1).bit_length()
