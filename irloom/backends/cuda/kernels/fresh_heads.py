"""The key and value that a token brings to its own attention: normed, rotated, kept in the cache, seen."""

from __future__ import annotations

from .mode import kernel, rounded, tl
from .paged_keys import scored, weighed
from .rope_kernels import waves


@kernel
def turned(
    x, row, inside, position, weight, freq, eps, DIM: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr, TURN: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Heads of ``DIM`` features at offsets ``row``, normed and rotated, in the element of ``x``.

    A feature is read along with the other one of its pair: the first of ``HALF`` pairs with the one ``HALF``
    further, or with its neighbour.
    """
    col = tl.arange(0, BLOCK)
    first, other, pair = col < HALF, col, col
    if HALF:
        if INTERLEAVED:
            first, other, pair = col % 2 == 0, col ^ 1, col // 2
        else:
            other, pair = tl.where(first, col + HALF, col - HALF), col % HALF
        other = tl.where(col < 2 * HALF, other, col)
    mask = inside[:, None] & (col < DIM)[None]
    a = tl.load(x + row[:, None] + col[None], mask, 0.0).to(tl.float32)
    b = tl.load(x + row[:, None] + other[None], mask, 0.0).to(tl.float32)
    if NORM:
        by = tl.rsqrt(tl.sum(a * a, 1) / DIM + eps)[:, None]
        a, b = a * by, b * by
        if weight is not None:
            a *= tl.load(weight + col, col < DIM, 0.0).to(tl.float32)[None]
            b *= tl.load(weight + other, col < DIM, 0.0).to(tl.float32)[None]
        a = rounded(a, x.dtype.element_ty).to(tl.float32)
        b = rounded(b, x.dtype.element_ty).to(tl.float32)
    if HALF:
        paired = col < 2 * HALF
        cos, sin = waves(position.to(tl.float32) * tl.load(freq + pair, paired, 0.0).to(tl.float32))
        cos, sin = tl.where(paired, cos * TURN, 1.0), tl.where(paired, sin * TURN, 0.0)
        a = a * cos[None] + b * tl.where(first, -sin, sin)[None]
    return rounded(a, x.dtype.element_ty)


@kernel
def own_key(
    acc, top, total, q, x, y, k, v, page, position, at, slope, weight, freq, eps,
    K_PAGE: tl.constexpr, K_TOKEN: tl.constexpr, V_PAGE: tl.constexpr, V_TOKEN: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, VALUE: tl.constexpr, VALUES: tl.constexpr, PAGE: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, SLOPED: tl.constexpr, HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr, TURN: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Keep the key at ``x`` and the value at ``y`` of the token at ``position``, and attend to them first.

    ``k`` and ``v`` are the caches of this head; what counts is what they hold, rounded as they are.
    """
    one = tl.zeros((1,), tl.int32)
    key = turned(x, one, one == 0, position, weight, freq, eps, DIM, MAIN, HALF, INTERLEAVED, TURN, NORM)
    key = rounded(key.to(tl.float32), k.dtype.element_ty)
    col, feature = tl.arange(0, MAIN)[None], tl.arange(0, VALUES)[None]
    value = tl.load(y + feature, feature < VALUE, 0.0).to(tl.float32)
    value = rounded(value, v.dtype.element_ty)
    entry = position % PAGE
    tl.store(k + page.to(tl.int64) * K_PAGE + entry * K_TOKEN + col, key, col < DIM)
    tl.store(v + page.to(tl.int64) * V_PAGE + entry * V_TOKEN + feature, value, feature < VALUE)
    s = tl.sum(q.to(tl.float32) * key.to(tl.float32), 1)[:, None]
    s = scored(s, at, one + position, one == 0, slope, SCALE, SOFTCAP, SLOPED, 0, 0, 0)
    part, _, top, total = weighed(s, top, total, SCALE, SOFTCAP, SLOPED)
    return acc + part * value.to(tl.float32), top, total
