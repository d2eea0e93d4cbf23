"""The kernel of products of a few rows by weights of whole bytes: floats, fp8, int8."""

# ruff: noqa: RUF005 (Triton joins tuples, but does not unpack them)
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false
# (tuples of a kernel grow, and its loops are unrolled, before there are types)

from __future__ import annotations

from .few_rows import (
    finish,
    norm_tile,
    on_grid,
    per_thread,
    rounding,
    row_tile,
    rows_of,
    scale_tile,
    weight_tile,
)
from .mode import go_on, kernel, tl, wait


@kernel
def ahead(
    weight, scales, zeros, norm, rows, step, N: tl.constexpr, K: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, WIDE: tl.constexpr, SHARE: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """What no kernel writes of ``BK`` entries: of the weight, its scales and zeros, and the norm."""
    w = weight_tile(weight, rows, step, N, K, BN, BK)
    scale, zero = 1.0, 0.0
    if GROUP:
        scale = scale_tile(scales, rows, step, N, K, BK, WIDE, SHARE, GROUP)
        if zeros is not None:
            zero = scale_tile(zeros, rows, step, N, K, BK, WIDE, SHARE, GROUP)
    return w, scale, zero, norm_tile(norm, step, K, BK)


@kernel
def small_kernel(
    out, x, weight, scales, zeros, bias, residual, norm, T, out_row, x_row, residual_row, eps, scale, cap,
    N: tl.constexpr, K: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr,
    CAPPED: tl.constexpr, SHARE: tl.constexpr, GROUP: tl.constexpr, ROUND: tl.constexpr, ROWS: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr, DEPTH: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """Rows ``x`` [T, K], at most ``ROWS``, by a weight [N, K], ``WIDE`` entries of which are 16 bytes.

    ``scales`` may be None; ``SHARE`` rows (0: all) share one, by ``GROUP`` entries (0: whole rows, and no
    zeros). Rows of ``x`` are rounded to e4m3 as ``on_grid`` does.
    """
    go_on(CHAIN)
    STEPS: tl.constexpr = (K + BK - 1) // BK
    CHUNKS: tl.constexpr = BK // WIDE
    rows = rows_of(N, BN, GATED)
    ring = ()
    for s in tl.static_range(DEPTH):
        ring = ring + (ahead(weight, scales, zeros, norm, rows, s, N, K, BN, BK, WIDE, SHARE, GROUP),)
    if bias is not None:
        bias = tl.load(bias + rows, rows < N, 0.0).to(tl.float32)
    by_row = 1.0
    if scales is not None and GROUP == 0:
        block = rows // SHARE if SHARE > 0 else rows * 0
        by_row = tl.load(scales + block, rows < N, 0.0).to(tl.float32)
    wait(CHAIN)
    sums, squares, before = (), (), ()
    for t in tl.static_range(ROWS):
        sums = sums + (tl.zeros((BN, CHUNKS), tl.float32),)
        squares = squares + (tl.zeros((1, CHUNKS), tl.float32),)
        before = before + (rounding(x, t, T, x_row, norm, eps, K, BK, NORM, ROUND),)
    for s in tl.static_range(STEPS):
        w, by, zero, g = ring[0]
        ring = ring[1:]
        if s + DEPTH < STEPS:
            later = ahead(weight, scales, zeros, norm, rows, s + DEPTH, N, K, BN, BK, WIDE, SHARE, GROUP)
            ring = ring + (later,)
        parts, more, more_squares = (), (), ()
        for t in tl.static_range(ROWS):
            h = row_tile(x, t, T, x_row, s, K, BK)
            more_squares = more_squares + (squares[t] + per_thread(h * h, 1, CHUNKS, WIDE),)
            parts = parts + (on_grid(h * g * before[t][0], before[t][1], x, K, BK, ROUND),)
        w = w.to(tl.float32)
        for t in tl.static_range(ROWS):
            part = per_thread(w * parts[t][None, :], BN, CHUNKS, WIDE)
            if zeros is not None:
                part -= zero * per_thread(parts[t], 1, CHUNKS, WIDE)
            more = more + (sums[t] + part * by,)
        sums, squares = more, more_squares
    for t in tl.static_range(ROWS):
        y = tl.sum(sums[t], 1) * by_row
        if NORM and not ROUND:
            y *= tl.rsqrt(tl.sum(squares[t]) / K + eps)
        finish(out, y, t, T, bias, residual, out_row, residual_row, scale, cap, N, BN, GATED, ACT, CAPPED)
