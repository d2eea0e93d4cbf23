"""Tiles of our own product that are worth a trial at a shape: those that fit and fill the multiprocessors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import torch

from irloom.ir.elem import ELEMS, Quant

from .kernels.tiled import Tile
from .kernels.tiles import power_of_two
from .quantized import Operand, Quantized

MEDIUM = 256
"""Rows up to which reading the weight costs most."""
SHARED = 220 << 10
"""Bytes of shared memory for a program; two share a multiprocessor where each takes half."""


def tiles(
    rows: int, n: int, weight: Operand, quant: Quant | None, element: torch.dtype, gated: bool
) -> list[Tile]:
    """Tiles for ``rows``, of ``element`` or rounded to ``quant``, by a weight that gives ``n`` columns.

    None where the tensor cores would round entries of f32, or where rows of integers come in.
    """
    values, scheme = (weight.values, weight.quant) if isinstance(weight, Quantized) else (weight, None)
    eight = quant is not None
    if element == torch.float32 or (eight and not (scheme and quant.base == scheme.base == ELEMS["f8e4m3"])):
        return []
    four = scheme is not None and scheme.base.bits == 4
    k = values.shape[1] * (2 if four else 1)
    groups = {q.group for q in (quant, scheme) if q and q.group}
    if len(groups) > 1:  # a kernel has one for both
        return []
    step = min([128 if eight else 64, *groups])
    of_weight = (0.5 if four else values.element_size()) * (2 if gated else 1)
    made: list[Tile] = []
    for tile in _shapes(rows, n, k, step, gated):
        stage = int(tile.k * (tile.n * of_weight + tile.t * (1 if eight else 2)))
        room = SHARED // 2 if rows <= MEDIUM and stage * 3 <= SHARED // 2 else SHARED
        if stage * 2 <= room and not any(group % tile.k for group in groups):
            made.append(replace(tile, stages=min(6, room // stage)))
    return list(dict.fromkeys(made))


def _shapes(rows: int, n: int, k: int, step: int, gated: bool) -> Iterator[Tile]:
    """Tiles that suit a GPU, with ``step`` entries of a row at a time or twice as many."""
    if rows > MEDIUM:
        for height, width, warps in GATED if gated else LARGE:
            yield Tile(height, width, step, 1, warps)
        return
    width = columns(rows)
    for height in (64,) if gated else (128, 64):
        tiles = -(-n // height) * -(-rows // width)
        most = min(16, max(1, k // (4 * step)))
        for split in sorted({max(1, min(most, per * multiprocessors() // tiles)) for per in (1, 2, 3)}):
            for entries in (step, 2 * step):
                yield Tile(height, width, entries, split, 4)


LARGE, GATED = ((128, 128, 4), (128, 256, 8), (128, 128, 8)), ((64, 128, 4), (64, 256, 8), (128, 128, 8))
"""Rows of the weight, tokens, warps."""


def columns(rows: int) -> int:
    """Tokens of a tile where there are ``rows`` of them: a power of two, 128 at the most."""
    return max(16, min(128, power_of_two(rows)))


@cache
def multiprocessors() -> int:
    """Of this GPU; where there is none, of an H200."""
    if not torch.cuda.is_available():
        return 132
    return torch.cuda.get_device_properties(0).multi_processor_count
