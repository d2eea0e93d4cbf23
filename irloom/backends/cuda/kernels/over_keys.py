"""A block of queries over a range of keys in the pages of a cache: the loop of every attention kernel."""

from __future__ import annotations

from .mode import INTERPRETED, dot, kernel, rounded, tl
from .paged_keys import keys, pages_of, places, scored, weighed


@kernel
def over_keys(
    acc, top, total, q, q_rest, k, v, table, at, slope, begin, end, first, context,
    K_PAGE: tl.constexpr, K_TOKEN: tl.constexpr, V_PAGE: tl.constexpr, V_TOKEN: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, VALUE: tl.constexpr, VALUES: tl.constexpr,
    SHARED: tl.constexpr, PAGE: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
    SLOPED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    MASK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Attend rows at positions ``at`` to keys ``begin`` to ``end - 1``, in blocks from ``begin`` on.

    ``acc`` f32[rows, VALUES] sums values by weights ``exp2(score - top)``, ``total`` the weights. With
    ``MASK`` only the keys ``first`` to ``context - 1`` are read, and others are zeros, whatever their pages
    hold; ``PER_ROW`` if some row does not see all of these. Values are the keys' first features where
    ``SHARED``. A key of ``DIM`` features is read as the ``MAIN`` first, the largest power of two that fits,
    and a ``REST``, so that 96 and 576 cost no padding.
    """
    if PAIRS:
        return over_pairs(
            acc, top, total, q, k, v, table, at, slope, begin, end, first, context, K_PAGE, K_TOKEN, V_PAGE,
            V_TOKEN, DIM, VALUES, PAGE, SCALE, SOFTCAP, SLOPED, WINDOW, CHUNK, BLOCK, MASK, PAIRS,
        )  # fmt: skip
    ahead = pages_of(table, begin, tl.minimum(end, context), PAGE, BLOCK)
    for start in range(begin, end, BLOCK):
        page = ahead
        ahead = pages_of(table, start + BLOCK, tl.minimum(end, context), PAGE, BLOCK)
        key = start + tl.arange(0, BLOCK)
        inside = (key >= first) & (key < context)
        here, row = places(k, page, start, K_PAGE, K_TOKEN, PAGE, BLOCK)
        main = keys(here, row, inside, 0, MAIN if MAIN < DIM else DIM, MAIN, MASK).to(q.dtype)
        s = dot(q, tl.trans(main), tl.zeros((q.shape[0], BLOCK), tl.float32))
        if REST:
            rest = keys(here, row, inside, MAIN, DIM - MAIN, REST, MASK).to(q.dtype)
            s = dot(q_rest, tl.trans(rest), s)
        s = scored(s, at, key, inside, slope, SCALE, SOFTCAP, SLOPED, WINDOW, CHUNK, MASK)
        if SHARED:
            value = main
        else:
            here, row = places(v, page, start, V_PAGE, V_TOKEN, PAGE, BLOCK)
            value = keys(here, row, inside, 0, VALUE, VALUES, MASK).to(q.dtype)
        weight, kept, top, total = weighed(s, top, total, SCALE, SOFTCAP, SLOPED)
        acc = dot(rounded(weight, q.dtype), value, acc * kept[:, None])
    return acc, top, total


@kernel
def over_pairs(
    acc, top, total, q, k, v, table, at, slope, begin, end, first, context,
    K_PAGE: tl.constexpr, K_TOKEN: tl.constexpr, V_PAGE: tl.constexpr, V_TOKEN: tl.constexpr,
    DIM: tl.constexpr, VALUES: tl.constexpr, PAGE: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
    SLOPED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, MASK: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """As ``over_keys`` for keys and values in fp8, of which u16 at ``k`` and ``v`` hold two each.

    Even and odd features are products of their own: so pairs stay together on the way from memory to the
    tensor cores, which take 16-bit entries in any order of dims, and single bytes in one alone.
    """
    ROWS: tl.constexpr = q.shape[0]
    even, odd = tl.split(tl.reshape(q, (ROWS, DIM // 2, 2)))
    acc, acc_odd = tl.split(tl.reshape(acc, (ROWS, VALUES // 2, 2)))
    ahead = pages_of(table, begin, tl.minimum(end, context), PAGE, BLOCK)
    for start in range(begin, end, BLOCK):
        page = ahead
        ahead = pages_of(table, start + BLOCK, tl.minimum(end, context), PAGE, BLOCK)
        key = start + tl.arange(0, BLOCK)
        inside = (key >= first) & (key < context)
        here, row = places(k, page, start, K_PAGE, K_TOKEN, PAGE, BLOCK)
        low, high = floats(keys(here, row, inside, 0, DIM // 2, DIM // 2, MASK), PAIRS)
        s = dot(even, tl.trans(low), tl.zeros((ROWS, BLOCK), tl.float32))
        s = dot(odd, tl.trans(high), s)
        s = scored(s, at, key, inside, slope, SCALE, SOFTCAP, SLOPED, WINDOW, CHUNK, MASK)
        weight, kept, top, total = weighed(s, top, total, SCALE, SOFTCAP, SLOPED)
        weight = rounded(weight, q.dtype)
        here, row = places(v, page, start, V_PAGE, V_TOKEN, PAGE, BLOCK)
        low, high = floats(keys(here, row, inside, 0, VALUES // 2, VALUES // 2, MASK), PAIRS)
        acc = dot(weight, low, acc * kept[:, None])
        acc_odd = dot(weight, high, acc_odd * kept[:, None])
    return tl.reshape(tl.join(acc, acc_odd), (ROWS, VALUES)), top, total


@kernel
def floats(x, PAIRS: tl.constexpr):
    """Of each pair of fp8 entries with ``PAIRS`` bits of exponent, the first and the second as f16."""
    if INTERPRETED:
        low, high = (x & 0xFF).to(tl.uint8), (x >> 8).to(tl.uint8)
        if PAIRS == 4:
            low, high = low.to(tl.float8e4nv, bitcast=True), high.to(tl.float8e4nv, bitcast=True)
        else:
            low, high = low.to(tl.float8e5, bitcast=True), high.to(tl.float8e5, bitcast=True)
        return low.to(tl.float16), high.to(tl.float16)
    elif PAIRS == 4:
        return tl.inline_asm_elementwise(
            "{ .reg .b16 a, b; .reg .b32 p; prmt.b32 p, $2, 0, 0x3120; mov.b32 {a, b}, p;"
            " cvt.rn.f16x2.e4m3x2 $0, a; cvt.rn.f16x2.e4m3x2 $1, b; }",
            "=r,=r,r", [x], dtype=(tl.float16, tl.float16), is_pure=True, pack=2,
        )  # fmt: skip
    else:  # an e5m2 is the upper byte of an f16
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $2, 0, 0x2404; prmt.b32 $1, $2, 0, 0x3414;",
            "=r,=r,r", [x], dtype=(tl.float16, tl.float16), is_pure=True, pack=2,
        )  # fmt: skip
