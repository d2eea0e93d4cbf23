"""Tiles of the products that the copy engine feeds, those worth a trial at a shape."""

from __future__ import annotations

from collections.abc import Iterator

from .kernels.ring import Ring, has_rings
from .kernels.streamed import Stream
from .kernels.wide import Wide
from .product_tiles import MEDIUM, SHARED, columns, multiprocessors

PART = 128
"""Bytes of a row in a box: as many as are moved at a time."""
HEIGHTS = 128, 64, 256
"""Rows of the weight that a program may have."""
RINGED = range(17, 65)
"""Rows by which a ring that is full before the tokens are there beats all else."""
SPLITS = 1, 2, 4, 8
"""Into how many parts a sum may go."""
SHORT = 64
"""Boxes of a row that are few."""
DEEPEST = 12
"""Places of a ring: more hold no more than memory needs to be kept busy."""

Boxed = Wide | Stream | Ring


def boxed_tiles(rows: int, n: int, k: int, size: int, gated: bool, residual: bool) -> list[Boxed]:
    """Tiles for a weight that gives ``n`` columns of ``k`` entries of ``size`` bytes."""
    step = PART // size
    if rows > MEDIUM:
        return _wide(step, gated, residual)
    if rings := ringed(rows, n, k, step, gated):
        return rings
    gates = [Wide(64 if rows <= 64 else 128, 128, step, 8, 4)] if gated else []
    return [*gates, *dict.fromkeys(_streams(rows, n, k, step, gated))]


def ringed(rows: int, n: int, k: int, step: int, gated: bool) -> list[Boxed]:
    """Rings where all programs run at once, on a GPU that has them; none but for ``RINGED`` rows.

    Either one program has a multiprocessor, or two share each: were there fewer of those, some would share
    one while others had none. Half of the multiprocessors do where rows of the weight are short: those left
    take the next kernel's programs. Those first that were fastest between a layer's other kernels.
    """
    if rows not in RINGED or not has_rings():
        return []
    made: list[Ring] = []
    for height, warps, each, splits in ((64, 4, 1, SPLITS), (128, 8, 1, SPLITS), (64, 4, 2, SPLITS[:1])):
        tiles, programs = -(-n // height), multiprocessors() * each
        few = 0.4 if height == 64 and each == 1 and k <= SHORT * step else 0.7
        stages = SHARED // each // (PART * (height * (1 + gated) + columns(rows)))
        for split in splits:
            if split <= max(1, k // (4 * step)) and programs * few <= tiles * split <= programs:
                made.append(Ring(height, columns(rows), step, split, warps, min(stages, DEEPEST)))
    made.sort(key=lambda ring: (ring.split > 1, -ring.n))
    return [*made]


def _wide(step: int, gated: bool, residual: bool) -> list[Boxed]:
    """Two operands of 256 and 128 rows take all shared memory, or nearly all. Neither 256 tokens, nor more
    entries at a time, nor smaller groups, nor warps that only copy for others were faster on an H200 at its
    power limit, though some were in a short burst: what counts there is energy.
    """
    if gated:
        return [Wide(128, 128, step, 8, 4)]
    return [Wide(128, 256, step, 8, 3 if residual else 4), Wide(128, 128, step, 8, 4)]


def _streams(rows: int, n: int, k: int, step: int, gated: bool) -> Iterator[Stream]:
    """About a program for each multiprocessor, or half as many, or twice where there is room for two.

    Boxes of tokens come from the L2 cache, once for each program: the more rows of the weight it has, the
    less goes that way.
    """
    width = columns(rows)
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
    possible = [s for s in SPLITS if s <= max(1, most)]
    programs = multiprocessors() * each
    good = [s for s in possible if multiprocessors() * 0.4 <= tiles * s <= programs]
    return good or (possible[:1] if tiles > programs else possible[-1:])
