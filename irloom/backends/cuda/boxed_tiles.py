"""Tiles of the products that the copy engine feeds, those worth a trial at a shape."""

from __future__ import annotations

from collections.abc import Iterator

from .kernels.streamed import Stream
from .kernels.wide import Wide
from .product_tiles import MEDIUM, SHARED, multiprocessors

PART = 128
"""Bytes of a row in a box: as many as are moved at a time."""
HEIGHTS = 128, 64, 256
"""Rows of the weight that a program may have."""


def boxed_tiles(rows: int, n: int, k: int, size: int, gated: bool, residual: bool) -> list[Wide | Stream]:
    """Tiles for a weight that gives ``n`` columns of ``k`` entries of ``size`` bytes."""
    step = PART // size
    if rows > MEDIUM:
        return _wide(step, gated, residual)
    gates = [Wide(64 if rows <= 64 else 128, 128, step, 8, 4)] if gated else []
    return [*gates, *dict.fromkeys(_streams(rows, n, k, step, gated))]


def _wide(step: int, gated: bool, residual: bool) -> list[Wide | Stream]:
    """Two operands of 256 and 128 rows take all shared memory, or nearly all. Neither 256 tokens, nor more
    entries at a time, nor smaller groups were ever faster where the card is at its power limit.
    """
    if gated:
        return [Wide(128, 128, step, 8, 4)]
    return [Wide(128, 256, step, 8, 3 if residual else 4), Wide(128, 128, step, 8, 4)]


def _streams(rows: int, n: int, k: int, step: int, gated: bool) -> Iterator[Wide | Stream]:
    """About a program for each multiprocessor, or half as many, or twice where there is room for two.

    Boxes of tokens come from the L2 cache, once for each program: the more rows of the weight it has, the
    less goes that way.
    """
    width = max(16, min(128, 1 << (rows - 1).bit_length()))
    for height in (64,) if gated else HEIGHTS:
        tiles = -(-n // height) * -(-rows // width)
        room = SHARED if height > HEIGHTS[0] else SHARED // 2
        stages = room // (PART * (height * (1 + gated) + width))
        warps = 8 if height > HEIGHTS[0] else 4
        for split in _splits(tiles, k // (4 * step), 2 if height < HEIGHTS[0] else 1):
            yield Stream(height, width, step, split, warps, max(2, min(8, stages)))


def _splits(tiles: int, most: int, each: int) -> list[int]:
    """Into how many parts, up to ``most``, sums may go, with up to so many programs on ``each``
    multiprocessor.
    """
    possible = [s for s in (1, 2, 4, 8) if s <= max(1, most)]
    programs = multiprocessors() * each
    good = [s for s in possible if multiprocessors() * 0.4 <= tiles * s <= programs]
    return good or (possible[:1] if tiles > programs else possible[-1:])
