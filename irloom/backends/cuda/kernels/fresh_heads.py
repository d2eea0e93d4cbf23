"""The key and value that a token brings to its own attention: normed, rotated, kept in the cache, seen."""

from __future__ import annotations

from .mode import kernel, rounded, tl
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
def heads_of(x, row, inside, turn, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Heads of ``DIM`` features at offsets ``row``, and of each feature the other one of its pair."""
    _, _, other, _, _ = turn
    col = tl.arange(0, BLOCK)
    mask = inside[:, None] & (col < DIM)[None]
    x += row[:, None]
    return tl.load(x + col[None], mask, 0.0), tl.load(x + other[None], mask, 0.0)


@kernel
def turned(heads, turn, eps, DIM: tl.constexpr, NORM: tl.constexpr):
    """What ``heads_of`` gave, normed, rotated by a ``turn_of``, rounded as it was."""
    cos, sin, _, own, others = turn
    a, b = heads
    elem: tl.constexpr = a.dtype
    a, b = a.to(tl.float32), b.to(tl.float32)
    if NORM:
        by = tl.rsqrt(tl.sum(a * a, 1) / DIM + eps)[:, None]
        a = rounded(a * by * own, elem).to(tl.float32)
        b = rounded(b * by * others, elem).to(tl.float32)
    return rounded(a * cos + b * sin, elem)


@kernel
def kept(
    key, value, k, v, page, position, live, turn, eps,
    K_PAGE: tl.constexpr, K_TOKEN: tl.constexpr, V_PAGE: tl.constexpr, V_TOKEN: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, VALUE: tl.constexpr, VALUES: tl.constexpr, PAGE: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """The new key, as ``heads_of`` gave it, and value of the token at ``position``, as the cache holds them.

    They are kept at ``k`` and ``v``, the cache of this head, where ``live``.
    """
    new = rounded(turned(key, turn, eps, DIM, NORM).to(tl.float32), k.dtype.element_ty)
    seen = rounded(value.to(tl.float32), v.dtype.element_ty)
    col, feature, entry = tl.arange(0, MAIN)[None], tl.arange(0, VALUES)[None], position % PAGE
    tl.store(k + page.to(tl.int64) * K_PAGE + entry * K_TOKEN + col, new, live & (col < DIM))
    tl.store(v + page.to(tl.int64) * V_PAGE + entry * V_TOKEN + feature, seen, live & (feature < VALUE))
    return new, seen


@kernel
def paired(x):
    """Entries of fp8 [1, n] as u16 [1, n / 2] of two each."""
    low, high = tl.split(tl.reshape(x.to(tl.uint8, bitcast=True), (1, x.shape[1] // 2, 2)))
    return low.to(tl.uint16) | (high.to(tl.uint16) << 8)
