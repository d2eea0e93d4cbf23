"""The key and value that a token brings to its own attention: normed, rotated, kept in the cache, seen."""

from __future__ import annotations

from .mode import kernel, rounded, tl
from .paged_keys import NOTHING, scored, weighed
from .rope_kernels import waves


@kernel
def turn_of(
    position, freq, weight, DIM: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr, TURN: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """What heads of ``DIM`` features are normed and rotated by at ``position``, which no kernel writes.

    A feature's own factor and that of the other one of its pair (cosine and sine), where this other one is,
    and the norm's weights of both. The first of ``HALF`` pairs is with the one ``HALF`` further, or with its
    neighbour.
    """
    col = tl.arange(0, BLOCK)
    other, cos, sin = col, 1.0, 0.0
    if HALF:
        first, other, pair = col < HALF, tl.where(col < HALF, col + HALF, col - HALF), col % HALF
        if INTERLEAVED:
            first, other, pair = col % 2 == 0, col ^ 1, col // 2
        paired = col < 2 * HALF
        other = tl.where(paired, other, col)
        cos, sin = waves(position.to(tl.float32) * tl.load(freq + pair, paired, 0.0).to(tl.float32))
        cos, sin = tl.where(paired, cos * TURN, 1.0), tl.where(paired, sin * TURN, 0.0)
        cos, sin = cos[None], tl.where(first, -sin, sin)[None]
    own, others = 1.0, 1.0
    if NORM and weight is not None:
        own = tl.load(weight + col, col < DIM, 0.0).to(tl.float32)[None]
        others = tl.load(weight + other, col < DIM, 0.0).to(tl.float32)[None]
    return cos, sin, other, own, others


@kernel
def turned(x, row, inside, turn, eps, DIM: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr):
    """Heads of ``DIM`` features at offsets ``row``, normed, rotated by a ``turn_of``, rounded as ``x`` is."""
    cos, sin, other, own, others = turn
    col = tl.arange(0, BLOCK)
    mask = inside[:, None] & (col < DIM)[None]
    a = tl.load(x + row[:, None] + col[None], mask, 0.0).to(tl.float32)
    b = tl.load(x + row[:, None] + other[None], mask, 0.0).to(tl.float32)
    if NORM:
        by = tl.rsqrt(tl.sum(a * a, 1) / DIM + eps)[:, None]
        a = rounded(a * by * own, x.dtype.element_ty).to(tl.float32)
        b = rounded(b * by * others, x.dtype.element_ty).to(tl.float32)
    return rounded(a * cos + b * sin, x.dtype.element_ty)


@kernel
def own_key(
    q, key, value, page, position, at, slope, turn, eps,
    K_PAGE: tl.constexpr, K_TOKEN: tl.constexpr, V_PAGE: tl.constexpr, V_TOKEN: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, VALUE: tl.constexpr, VALUES: tl.constexpr, PAGE: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, SLOPED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Keep the new key and value of the token at ``position``, and attend to them: sums, top and total.

    ``key`` and ``value`` are pointers to where the new one is, and to the cache of this head. What counts is
    what the cache holds, rounded as it is.
    """
    x, k = key
    y, v = value
    one = tl.zeros((1,), tl.int32)
    new = turned(x, one, one == 0, turn, eps, DIM, MAIN, NORM)
    new = rounded(new.to(tl.float32), k.dtype.element_ty)
    col, feature = tl.arange(0, MAIN)[None], tl.arange(0, VALUES)[None]
    seen = tl.load(y + feature, feature < VALUE, 0.0).to(tl.float32)
    seen = rounded(seen, v.dtype.element_ty)
    entry = position % PAGE
    tl.store(k + page.to(tl.int64) * K_PAGE + entry * K_TOKEN + col, new, col < DIM)
    tl.store(v + page.to(tl.int64) * V_PAGE + entry * V_TOKEN + feature, seen, feature < VALUE)
    s = tl.sum(q.to(tl.float32) * new.to(tl.float32), 1)[:, None]
    s = scored(s, at, one + position, one == 0, slope, SCALE, SOFTCAP, SLOPED, 0, 0, 0)
    nothing = tl.full((q.shape[0],), NOTHING, tl.float32)
    part, _, top, total = weighed(s, nothing, nothing * 0.0, SCALE, SOFTCAP, SLOPED)
    return part * seen.to(tl.float32), top, total
