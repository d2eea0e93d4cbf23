"""Ways to multiply by a four-bit weight in fragments that are worth a trial at a shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .kernels.few_four import Few, fews, fits
from .kernels.form import Form
from .kernels.tiled_four import FourTile
from .kernels.tiles import power_of_two
from .product_tiles import MEDIUM, multiprocessors
from .quantized import Operand, Quantized

SHARED = 220 << 10
"""Bytes of shared memory for a program; two of four warps share a multiprocessor."""
SHAPES = {
    16: ((8, 64, 4), (4, 64, 4), (8, 32, 4)),
    32: ((8, 64, 4), (4, 64, 4), (8, 64, 8), (8, 32, 4)),
    64: ((8, 32, 4), (8, 64, 8), (4, 32, 4), (4, 64, 4)),
    128: ((16, 32, 8), (8, 32, 8), (8, 64, 8)),
}
"""For so many tokens at a time, strips, entries of a span at a time and warps that are worth a trial."""


def four_ways(out: Operand, x: Operand, weight: Quantized, form: Form) -> list[Few | FourTile]:
    """Those of our own, best guess first; none where ``x`` is rounded, or not of 16 bits."""
    if not fits(x, weight, form):
        return []
    few = fews(out, x, weight, form)
    return [*few, *(_tiles(x.shape[0], x.shape[1], weight) if x.shape[0] > 4 or not few else [])]


def whole_tile(rows: int, x: Operand, weight: Quantized, form: Form) -> FourTile | None:
    """A tile that suits so many ``rows``, runs for any number of them, and sums whole rows of the weight."""
    if not fits(x, weight, form):
        return None
    return next((replace(tile, split=1) for tile in _tiles(rows, x.shape[1], weight)), None)


def _tiles(rows: int, k: int, weight: Quantized) -> Iterator[FourTile]:
    """Tiles for rows of which reading the weight costs most; zeros that are no integers are for others."""
    strips, span = weight.values.shape[0], weight.values.shape[2] * 16
    if rows > MEDIUM or (weight.zeros is not None and weight.zeros.is_floating_point()):
        return
    width = max(16, min(128, power_of_two(rows)))
    for height, entries, warps in SHAPES[width]:
        tiles = -(-strips // height) * -(-rows // width)
        most = max(1, min(16, k // 1024))
        stages = min(5, SHARED // (1 if warps == 8 else 2) // (entries * (height * 32 + width * 8)))
        for split in sorted({max(1, min(most, per * multiprocessors() // tiles)) for per in (1, 2)}):
            if stages > 1 and entries <= span:
                yield FourTile(height, width, entries, split, warps, stages)
