"""What attention kernels share: blocks of keys on pages, which of them a row sees, and weights of scores.

Scores are kept in base 2: ``exp2`` is what the hardware has.
"""

from __future__ import annotations

from .mode import kernel, tl

NOTHING = tl.constexpr(-1e30)
"""A row's greatest score before it has seen a key: finite, so that differences of two such are no NaN."""

ALL_ALIKE, PER_ROW = tl.constexpr(1), tl.constexpr(2)
"""Masks of a range of keys; 0 where every row sees every one of them."""

LOG2E = tl.constexpr(1.4426950408889634)


@kernel
def since(at, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The first key that a token at ``at`` sees; 0 stands for no window and for no chunk."""
    first = at * 0
    if WINDOW:
        first = tl.maximum(first, at - WINDOW + 1)
    if CHUNK:
        first = tl.maximum(first, at // CHUNK * CHUNK)
    return first


@kernel
def columns(x, row, inside, START: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Features ``START`` to ``START + SIZE - 1`` of the rows at offsets ``row``, zeros up to ``BLOCK``."""
    col = tl.arange(0, BLOCK)
    mask = inside[:, None]
    if BLOCK != SIZE:
        mask = mask & (col < SIZE)[None]
    return tl.load(x + row[:, None] + START + col[None], mask, 0.0)


@kernel
def keys(x, row, inside, START: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, MASK: tl.constexpr):
    """As ``columns``, of keys of which all are ``inside`` unless ``MASK``."""
    if MASK or BLOCK != SIZE:
        return columns(x, row, inside, START, SIZE, BLOCK)
    return tl.load(x + row[:, None] + START + tl.arange(0, BLOCK)[None])


@kernel
def pages_of(table, start, until, PAGE: tl.constexpr, BLOCK: tl.constexpr):
    """The pages of ``BLOCK`` keys from ``start`` on, one where they all have one."""
    if PAGE >= BLOCK:
        return tl.load(table + start // PAGE, start < until, 0)
    else:
        key = start + tl.arange(0, BLOCK)
        return tl.load(table + key // PAGE, key < until, 0)


@kernel
def places(
    x, page, start, STRIDE: tl.constexpr, TOKEN: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr
):
    """Where ``BLOCK`` keys from ``start`` on lie on their pages: a pointer, and an offset of each.

    Where they share a page, the offsets are the same for every block, and cost registers once.
    """
    if PAGE >= BLOCK:
        return x + page.to(tl.int64) * STRIDE + start % PAGE * TOKEN, tl.arange(0, BLOCK) * TOKEN
    else:
        return x, page.to(tl.int64) * STRIDE + (start + tl.arange(0, BLOCK)) % PAGE * TOKEN


@kernel
def widened(q, k, PAIRS: tl.constexpr):
    """Queries in what their products with keys at ``k`` are computed in: f16 for keys of fp8, or f32."""
    if q.dtype.primitive_bitwidth == 16 and (PAIRS or k.dtype.element_ty.primitive_bitwidth == 8):
        return tl.clamp(q.to(tl.float32), -65504.0, 65504.0).to(tl.float16)
    elif not PAIRS and k.dtype.element_ty.primitive_bitwidth != 8 and k.dtype.element_ty != q.dtype:
        return q.to(tl.float32)
    else:
        return q


@kernel
def scored(
    s, at, key, inside, slope, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, SLOPED: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Scores of the products ``s``, but for a factor where they are nothing else: ``weighed`` has it."""
    if SOFTCAP > 0:
        s = SOFTCAP - 2 * SOFTCAP / (tl.exp2(s * (2 * SCALE * LOG2E / SOFTCAP)) + 1)
    elif SLOPED:
        s = s * SCALE
    if SLOPED:
        s += slope[:, None] * (key[None] - at[:, None]).to(tl.float32)
    if MASK:
        seen = inside[None]
        if MASK == PER_ROW:
            seen = seen & (key[None] <= at[:, None]) & (key[None] >= since(at, WINDOW, CHUNK)[:, None])
        s = tl.where(seen, s, float("-inf"))
    return s


@kernel
def weighed(s, top, total, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, SLOPED: tl.constexpr):
    """Weights of what ``scored`` made, what remains of earlier ones, and the new ``top`` and ``total``."""
    factor: tl.constexpr = LOG2E if SOFTCAP > 0 or SLOPED else SCALE * LOG2E
    higher = tl.maximum(top, tl.max(s, 1) * factor)
    weight = tl.exp2(s * factor - higher[:, None])
    kept = tl.exp2(top - higher)
    return weight, kept, higher, total * kept + tl.sum(weight, 1)


@kernel
def finish(acc, top, total, sink, SUNK: tl.constexpr):
    """What rows attend to when all of their keys are seen; ``sink`` f32[rows] takes weight, gives nothing."""
    if SUNK:
        sink = sink * LOG2E
        higher = tl.maximum(top, sink)
        kept = tl.exp2(top - higher)
        total = total * kept + tl.exp2(sink - higher)
        acc = acc * kept[:, None]
    return acc / total[:, None]
