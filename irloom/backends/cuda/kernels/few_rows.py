"""What products with a few rows share: which rows of the weight a program has, and how it reads and finishes.

A program has some rows of the weight and the whole of ``k``; its threads lie side by side along ``k``, 16
bytes of a row each. Weights are in registers, or on their way, before the kernel in front has ended: so the
memory works on while the last programs of one kernel finish and the first of the next wait for them. The
norm in front costs little: a row's factor comes out of its products, and the sum of squares is of entries
that are read anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

from .curves import activated, tanh
from .mode import kernel, rounded, tl
from .tiles import power_of_two


@dataclass(frozen=True)
class Strip:
    """What a program works on: ``parts`` of ``rows`` of the weight each (gates and what they are for counted
    alike), 16 bytes of a row a thread at once, for ``parts`` after each other; ``depth`` parts are in flight.

    ``x`` is read, normed and rounded once for all parts.
    """

    rows: int
    parts: int
    warps: int
    depth: int

    def width(self, k: int, wide: int) -> int:
        """Entries of a row of ``k`` that are read at once, where a thread reads ``wide`` in 16 bytes."""
        return min(self.warps * 32 * wide, max(power_of_two(k), wide))

    def ahead(self, k: int, width: int) -> int:
        """How many parts are in flight."""
        return min(self.depth, self.parts * -(-k // width))


@kernel
def rows_of(part, N: tl.constexpr, BN: tl.constexpr, GATED: tl.constexpr):
    """The rows of a part of a weight of ``N``; where gated, each gate and then what it is for."""
    r = part * BN + tl.arange(0, BN)
    if GATED:
        r = tl.where(r < N, r // 2 + (r % 2) * (N // 2), N)
    return r


@kernel
def weight_tile(
    words, part, step, N: tl.constexpr, K: tl.constexpr, GATED: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """Words [BN, BK] of a weight [N, K], which nothing reads again; nothing is read beyond its end."""
    k, rows = step * BK + tl.arange(0, BK), rows_of(part, N, BN, GATED)
    at = words + rows.to(tl.int64)[:, None] * K + k[None, :]
    there = (k < K)[None, :]
    if N % BN == 0:
        there = there & (part * BN < N)
    else:
        there = there & (rows < N)[:, None]
    return tl.load(at, there, 0, eviction_policy="evict_first")


@kernel
def norm_tile(norm, step, K: tl.constexpr, BK: tl.constexpr):
    """Entries of a norm's weight [K]; a one where there is none."""
    if norm is None:
        g = 1.0
    else:
        k = step * BK + tl.arange(0, BK)
        g = tl.load(norm + k, k < K, 0.0)
    return g


@kernel
def scale_tile(
    scales, rows, step, N: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
    SHARE: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Scales (or zeros) [BN, BK / WIDE] of what one thread has in 16 bytes: ``SHARE`` rows (0: all of them)
    by ``GROUP`` entries share one.
    """
    k = step * BK + tl.arange(0, BK // WIDE) * WIDE
    block = rows // SHARE if SHARE > 0 else rows * 0
    at = scales + block[:, None] * (K // GROUP) + (k // GROUP)[None, :]
    return tl.load(at, (rows < N)[:, None] & (k < K)[None, :], 0.0).to(tl.float32)


@kernel
def ends_of(
    scales, bias, part, N: tl.constexpr, GATED: tl.constexpr, SHARE: tl.constexpr, GROUP: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """What a part's sums are multiplied by, and what is added to them then."""
    rows, by, plus = rows_of(part, N, BN, GATED), 1.0, 0.0
    if scales is not None and GROUP == 0:
        block = rows // SHARE if SHARE > 0 else rows * 0
        by = tl.load(scales + block, rows < N, 0.0).to(tl.float32)
    if bias is not None:
        plus = tl.load(bias + rows, rows < N, 0.0).to(tl.float32)
    return by, plus


@kernel
def rounding(
    x, t, T, x_row, norm, eps, K: tl.constexpr, BK: tl.constexpr, NORM: tl.constexpr, ROUND: tl.constexpr
):
    """What row ``t`` is multiplied by to be normed, and its largest entry then: needed before the first
    product where entries are rounded in between.
    """
    factor, largest = 1.0, 0.0
    if ROUND:
        squares, most = tl.zeros((BK,), tl.float32), tl.zeros((BK,), tl.float32)
        for s in tl.static_range((K + BK - 1) // BK):
            h = row_tile(x, t, T, x_row, s, K, BK).to(tl.float32)
            squares += h * h
            most = tl.maximum(most, tl.abs(h * norm_tile(norm, s, K, BK)))
        if NORM:
            factor = tl.rsqrt(tl.sum(squares, 0) / K + eps)
        largest = rounded(tl.max(most, 0) * factor, x.dtype.element_ty).to(tl.float32)
    return factor, largest


@kernel
def on_grid(h, largest, x, K: tl.constexpr, BK: tl.constexpr, ROUND: tl.constexpr):
    """``h`` [BK] as it is after rounding to e4m3 with a scale for ``ROUND`` entries each: as many as a row
    has (whose ``largest`` is known), or fewer. ``h`` itself where that is 0.
    """
    if ROUND:
        h = rounded(h, x.dtype.element_ty).to(tl.float32)
        if ROUND < K:
            h = tl.reshape(h, (BK // ROUND, ROUND))
            largest = tl.max(tl.abs(h), 1)[:, None]
        scale = tl.div_rn(largest, 448.0)
        inverse = tl.where(scale == 0.0, 0.0, tl.div_rn(1.0, scale))
        h = tl.reshape(rounded(h * inverse, tl.float8e4nv).to(tl.float32) * scale, (BK,))
    return h


@kernel
def row_tile(x, t, T, x_row, step, K: tl.constexpr, BK: tl.constexpr):
    """Entries of row ``t`` of ``x``: 0 beyond its end, and in rows beyond the last."""
    k = step * BK + tl.arange(0, BK)
    return tl.load(x + t * x_row + k, (k < K) & (t < T), 0.0)


@kernel
def columns_of(part, N: tl.constexpr, BN: tl.constexpr, GATED: tl.constexpr):
    """The results of a part, and which there are."""
    if GATED:
        c = part * (BN // 2) + tl.arange(0, BN // 2)
        live = c < N // 2
    else:
        c = part * BN + tl.arange(0, BN)
        live = c < N
    return c, live


@kernel
def residual_of(
    residual, part, t, T, residual_row, N: tl.constexpr, BN: tl.constexpr, GATED: tl.constexpr
):  # fmt: skip
    """What is added to a part's results of row ``t``; 0 where there is nothing."""
    y = 0.0
    if residual is not None:
        c, live = columns_of(part, N, BN, GATED)
        y = tl.load(residual + t * residual_row + c, live & (t < T), 0.0).to(tl.float32)
    return y


@kernel
def finish(
    out, y, residual, part, t, T, out_row, scale, cap, N: tl.constexpr, BN: tl.constexpr,
    GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Store what becomes of the sums ``y`` of a part and row ``t``."""
    c, live = columns_of(part, N, BN, GATED)
    if GATED:
        gate, up = tl.split(tl.reshape(y, (BN // 2, 2)))
        y = activated(gate, ACT) * up
    elif ACT is not None:
        y = activated(y, ACT)
    y *= scale
    if CAPPED:
        y = cap * tanh(y / cap)
    tl.store(out + t * out_row + c, rounded(y + residual, out.dtype.element_ty), live & (t < T))
