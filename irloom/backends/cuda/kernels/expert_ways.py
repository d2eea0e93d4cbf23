"""How products of experts run fastest at a shape: candidates, and what they are timed on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import torch

from irloom.backends.cuda.tuning import choose, settled
from irloom.backends.cuda.work import Workspace

from .boxed_experts import PAIRS, has_tiles
from .form import Gate
from .gather import PRODUCTS, SUMS, Gather
from .grouped import Tile, tiles
from .mixture import Mixture, Ways, expert_product
from .stack import Stack
from .tiles import power_of_two

T = TypeVar("T", bound=Gather | Tile)

FEW = 16
"""Tokens up to which products of single rows are tried."""

MANY = 48
"""Rows of an expert on average from which the copy engine is tried."""

MOST = 8192
"""Tokens past which nothing is chosen anew."""

DRAWS = 2
"""Mixtures of few tokens that are timed behind each other: how the next one starts counts as well."""


def mixture_ways(mixture: Mixture, out: torch.Tensor, x: torch.Tensor, weights: torch.Tensor) -> Ways:
    """How both products of a mixture run fastest: the best of rows, the best of tiles, or fed by copies."""
    up, down, dims = mixture.up, mixture.down, weights.shape
    key = *_key(x, dims, up, mixture.gate), *_key(x, dims, down, None)
    if known := settled("mixture", key):
        return known
    run = _trial(mixture, out, x, weights)
    ways: list[Ways] = []
    if dims[0] <= FEW:
        ways.append(_row_ways(key, run))
    if dims[0] > 1 or not ways:
        ways.append(_tile_ways(mixture, x, dims))
    if _rung(dims[0]) * dims[1] >= MANY * up.dims[0] and has_tiles(x, up, down):
        ways += PAIRS
    return choose("mixture", key, ways, run)


def product_way(
    x: torch.Tensor, dims: Sequence[int], stack: Stack, bias: torch.Tensor | None
) -> Gather | Tile:
    """How products alone run fastest, of ``x`` for ``dims`` choices [t, k]."""
    rows = PRODUCTS if dims[0] <= FEW else ()
    candidates = (*rows, *(_tiles(x, dims, stack) if dims[0] > 2 else ()))
    return _way("experts", candidates, x, dims, stack, bias, None)


def _row_ways(key: tuple[object, ...], run: Callable[[Ways], object]) -> tuple[Gather, Gather]:
    """The best pair of products of rows. How long one takes depends on the other: the second reads its first
    weights while the first one ends. So it is mixtures that are timed.
    """
    firsts = [(first, SUMS[0]) for first in PRODUCTS]
    first, _ = choose("experts in rows", key, firsts, run)
    return choose("experts in rows, summed", (*key, first), [(first, second) for second in SUMS], run)


def _tile_ways(mixture: Mixture, x: torch.Tensor, dims: Sequence[int]) -> tuple[Tile, Tile]:
    """The best tiles of both products, which have blocks of one height."""
    up, down = mixture.up, mixture.down
    hidden = torch.zeros(*dims, up.dims[1] // 2, dtype=x.dtype, device=x.device)
    candidates = _tiles(x, dims, up)
    first = _way("experts in tiles", candidates, x, dims, up, mixture.up_bias, mixture.gate)
    same = [t for t in candidates if t.height == first.height]
    name = f"experts in tiles of {first.height}"
    return first, _way(name, same, hidden, dims, down, mixture.down_bias, None)


def _trial(
    mixture: Mixture, out: torch.Tensor, x: torch.Tensor, weights: torch.Tensor
) -> Callable[[Ways], None]:
    """Runs a mixture in given ways; one of few tokens several times, with other experts each."""
    rooms = defaultdict[Ways, Workspace](lambda: Workspace(x.device))
    draws = range(DRAWS if len(x) <= FEW else 1)

    def run(ways: Ways) -> None:
        for draw in draws:
            rooms[ways].reset()
            index = _spread(*weights.shape, mixture.up.dims[0], x.device, draw)
            mixture.run(torch.empty_like(out), x, index, weights, None, None, ways, rooms[ways])

    return run


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
        index = _spread(*dims, stack.dims[0], x.device)
        expert_product(out, x, index, stack, bias, None, gate, how, rooms[how])

    return choose(name, _key(x, dims, stack, gate), candidates, run)


def _tiles(x: torch.Tensor, dims: Sequence[int], stack: Stack) -> tuple[Tile, ...]:
    return tiles(_rung(dims[0]) * dims[1] / stack.dims[0], x.dtype)


@cache
def _spread(tokens: int, k: int, experts: int, device: torch.device, seed: int = 0) -> torch.Tensor:
    """Choices by chance: those of a step that warms up may all go to one expert, and none fill blocks."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, max(experts, k), generator=draw)
    return (scores.topk(k, 1).indices % experts).int().to(device)


def _key(x: torch.Tensor, dims: Sequence[int], stack: Stack, gate: Gate | None) -> tuple[object, ...]:
    """What decides how long a product takes."""
    return (
        _rung(dims[0]),
        dims[1],
        *stack.dims,
        str(x.dtype),
        str(stack.values.dtype),
        stack.group,
        gate,
    )


def _rung(tokens: int) -> int:
    """So many share a choice: up to a power of two."""
    return power_of_two(min(tokens, MOST))
