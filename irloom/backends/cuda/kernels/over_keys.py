"""A block of queries over a range of keys in the pages of a cache: the loop of every attention kernel.

Scores are kept in base 2: ``exp2`` is what the hardware has. A head of ``DIM`` features is read as the
largest power of two that fits and a rest, so that 96 and 576 cost no padding; values are padded to a power
of two.
"""

from __future__ import annotations

from .mode import dot, kernel, rounded, tl

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
def widened(q, k):
    """Queries in what their products with keys at ``k`` are computed in: f16 for keys of a byte, or f32."""
    bits: tl.constexpr = k.dtype.element_ty.primitive_bitwidth
    if bits == 8 and q.dtype.primitive_bitwidth == 16:
        return tl.clamp(q.to(tl.float32), -65504.0, 65504.0).to(tl.float16)
    elif bits != 8 and k.dtype.element_ty != q.dtype:
        return q.to(tl.float32)
    else:
        return q


@kernel
def scored(s, at, key, slope, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, SLOPED: tl.constexpr):
    """Scores of the products ``s``, but for the factor that ``over_keys`` multiplies with last."""
    if SOFTCAP > 0:
        s = SOFTCAP - 2 * SOFTCAP / (tl.exp2(s * (2 * SCALE * LOG2E / SOFTCAP)) + 1)
    elif SLOPED:
        s = s * SCALE
    if SLOPED:
        s += slope[:, None] * (key[None] - at[:, None]).to(tl.float32)
    return s


@kernel
def over_keys(
    acc, top, total, q, q_rest, k, v, table, at, slope, begin, end, first, context,
    K_PAGE: tl.constexpr, K_TOKEN: tl.constexpr, V_PAGE: tl.constexpr, V_TOKEN: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, VALUE: tl.constexpr, VALUES: tl.constexpr,
    SHARED: tl.constexpr, PAGE: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
    SLOPED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    MASK: tl.constexpr,
):  # fmt: skip
    """Attend rows at positions ``at`` to keys ``begin`` to ``end - 1``, in blocks from ``begin`` on.

    ``acc`` f32[rows, VALUES] sums values by weights ``exp2(score - top)``, ``total`` the weights. With
    ``MASK`` only the keys ``first`` to ``context - 1`` are read, and others are zeros, whatever their pages
    hold; ``PER_ROW`` if some row does not see all of these. Values are the keys' first features where
    ``SHARED``.
    """
    factor: tl.constexpr = LOG2E if SOFTCAP > 0 or SLOPED else SCALE * LOG2E
    ahead = pages_of(table, begin, tl.minimum(end, context), PAGE, BLOCK)
    for start in range(begin, end, BLOCK):
        page = ahead.to(tl.int64)
        ahead = pages_of(table, start + BLOCK, tl.minimum(end, context), PAGE, BLOCK)
        key = start + tl.arange(0, BLOCK)
        inside = (key >= first) & (key < context)
        row = page * K_PAGE + (key % PAGE) * K_TOKEN
        main = keys(k, row, inside, 0, MAIN if MAIN < DIM else DIM, MAIN, MASK).to(q.dtype)
        s = dot(q, tl.trans(main), tl.zeros((q.shape[0], BLOCK), tl.float32))
        if REST:
            rest = keys(k, row, inside, MAIN, DIM - MAIN, REST, MASK).to(q.dtype)
            s = dot(q_rest, tl.trans(rest), s)
        s = scored(s, at, key, slope, SCALE, SOFTCAP, SLOPED)
        if MASK:
            seen = inside[None]
            if MASK == PER_ROW:
                seen = seen & (key[None] <= at[:, None]) & (key[None] >= since(at, WINDOW, CHUNK)[:, None])
            s = tl.where(seen, s, float("-inf"))
        if SHARED:
            value = main
        else:
            row = page * V_PAGE + (key % PAGE) * V_TOKEN
            value = keys(v, row, inside, 0, VALUE, VALUES, MASK).to(q.dtype)
        higher = tl.maximum(top, tl.max(s, 1) * factor)
        weight = tl.exp2(s * factor - higher[:, None])
        kept = tl.exp2(top - higher)
        total = total * kept + tl.sum(weight, 1)
        acc = dot(rounded(weight, q.dtype), value, acc * kept[:, None])
        top = higher
    return acc, top, total


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
