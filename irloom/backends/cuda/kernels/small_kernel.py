"""The kernel of products of a few rows, by weights of any kind that fills words."""

# ruff: noqa: RUF005 (Triton joins tuples, but does not unpack them)
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false
# (tuples of a kernel grow, and its loops are unrolled, before there are types)

from __future__ import annotations

from .few_rows import (
    ends_of,
    finish,
    norm_tile,
    on_grid,
    residual_of,
    rounding,
    row_tile,
    rows_of,
    scale_tile,
    weight_tile,
)
from .mode import go_on, kernel, tl, wait
from .words import by_word, entries_of, excess


@kernel
def small_kernel(
    out, x, words, scales, zeros, bias, residual, norm, T, out_row, x_row, residual_row, eps, scale, cap,
    N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, PER: tl.constexpr, NORM: tl.constexpr,
    GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr, SHARE: tl.constexpr, GROUP: tl.constexpr,
    ROUND: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    WIDE: tl.constexpr, DEPTH: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """Rows ``x`` [T, K], at most ``ROWS``, by a weight of words i32[N, K / PER] with entries of ``KIND``.

    ``scales`` may be None; ``SHARE`` rows (0: all) share one, by ``GROUP`` entries (0: whole rows, and no
    zeros). Rows of ``x`` are rounded to e4m3 as ``on_grid`` does. ``WIDE`` entries are a thread's at once.
    """
    go_on(CHAIN)
    STEPS: tl.constexpr = (K + BK - 1) // BK
    CHUNKS: tl.constexpr = BK // WIDE
    EXACT: tl.constexpr = x.dtype.element_ty == tl.float32
    first = tl.program_id(0) * PARTS
    ring, ends = before_waiting(
        words, scales, zeros, bias, first, N, K, PER, GATED, SHARE, GROUP, PARTS, BN, BK, WIDE, DEPTH
    )
    g = norm_tile(norm, 0, K, BK)
    wait(CHAIN)
    xs, before, squares, added, sums = (), (), (), (), ()
    for t in tl.static_range(ROWS):
        xs = xs + (row_tile(x, t, T, x_row, 0, K, BK),)
    for t in tl.static_range(ROWS):
        before = before + (rounding(x, t, T, x_row, norm, eps, K, BK, NORM, ROUND),)
        squares = squares + (tl.zeros((BK // PER,), tl.float32),)
    for i in tl.static_range(PARTS * ROWS):
        added = added + (residual_of(residual, first + i // ROWS, i % ROWS, T, residual_row, N, BN, GATED),)
        sums = sums + (tl.zeros((BN, CHUNKS), tl.float32),)
    for s in range(STEPS):
        hs, squares = prepared(xs, squares, g, before, x, K, NORM, ROUND, ROWS, BK, PER)
        if STEPS > 1:
            g = norm_tile(norm, s + 1, K, BK)
            for t in tl.static_range(ROWS):
                xs = xs[1:] + (row_tile(x, t, T, x_row, s + 1, K, BK),)
        for p in tl.static_range(PARTS):
            now = ring[0]
            part, later = first + (p + DEPTH) % PARTS, s + (p + DEPTH) // PARTS
            if (p + DEPTH) // PARTS < STEPS:
                ring = ring + (
                    ahead(words, scales, zeros, part, later, N, K, PER, GATED, SHARE, GROUP, BN, BK, WIDE),
                )
            else:
                ring = ring + (now,)  # nothing is left to read, and a loop's tuples keep their lengths
            ring = ring[1:]
            w = entries_of(now[0], KIND, EXACT)
            for t in tl.static_range(ROWS):
                y = products(w, hs[t], now, zeros, BN, CHUNKS, WIDE, GROUP, KIND, PER, EXACT)
                sums = sums[1:] + (sums[0] + y,)
    for i in tl.static_range(PARTS * ROWS):
        y = tl.sum(sums[i], 1) * ends[i // ROWS][0]
        if NORM and not ROUND:
            y *= tl.rsqrt(tl.sum(squares[i % ROWS], 0) / K + eps)
        finish(
            out, y + ends[i // ROWS][1], added[i], first + i // ROWS, i % ROWS, T, out_row, scale, cap,
            N, BN, GATED, ACT, CAPPED,
        )  # fmt: skip


@kernel
def before_waiting(
    words, scales, zeros, bias, first, N: tl.constexpr, K: tl.constexpr, PER: tl.constexpr,
    GATED: tl.constexpr, SHARE: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, WIDE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The first ``DEPTH`` tiles, and what parts end with."""
    ring, ends = (), ()
    for q in tl.static_range(DEPTH):
        part = first + q % PARTS
        ring = ring + (
            ahead(words, scales, zeros, part, q // PARTS, N, K, PER, GATED, SHARE, GROUP, BN, BK, WIDE),
        )
    for p in tl.static_range(PARTS):
        ends = ends + (ends_of(scales, bias, first + p, N, GATED, SHARE, GROUP, BN),)
    return ring, ends


@kernel
def prepared(
    xs, squares, g, before, x, K: tl.constexpr, NORM: tl.constexpr, ROUND: tl.constexpr, ROWS: tl.constexpr,
    BK: tl.constexpr, PER: tl.constexpr,
):  # fmt: skip
    """Entries of rows as products take them, and sums of squares with those of ``xs``."""
    hs = ()
    for t in tl.static_range(ROWS):
        h = xs[t].to(tl.float32)
        if NORM and not ROUND:
            squares = squares[1:] + (squares[0] + tl.sum(tl.reshape(h * h, (BK // PER, PER)), 1),)
        h = on_grid(h * g * before[t][0], before[t][1], x, K, BK, ROUND)
        hs = hs + (by_word(h, BK // PER, PER),)
    return hs, squares


@kernel
def ahead(
    words, scales, zeros, part, step, N: tl.constexpr, K: tl.constexpr, PER: tl.constexpr,
    GATED: tl.constexpr, SHARE: tl.constexpr, GROUP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """What no kernel writes, of a part and ``BK`` entries: words of the weight, scales and zeros."""
    tile = (weight_tile(words, part, step, N, K // PER, GATED, BN, BK // PER),)
    if GROUP:
        rows = rows_of(part, N, BN, GATED)
        tile = tile + (scale_tile(scales, rows, step, N, K, BK, WIDE, SHARE, GROUP),)
        if zeros is not None:
            tile = tile + (scale_tile(zeros, rows, step, N, K, BK, WIDE, SHARE, GROUP),)
    return tile


@kernel
def products(
    w, h, now, zeros, BN: tl.constexpr, CHUNKS: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr,
    KIND: tl.constexpr, PER: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Each thread's sums [BN, CHUNKS] of products of a part with a row."""
    y, total = w[0] * h[0][None, :], h[0]
    for e in tl.static_range(1, PER):
        y += w[e] * h[e][None, :]
        total += h[e]
    y = tl.sum(tl.reshape(y, (BN, CHUNKS, WIDE // PER)), 2)
    if KIND == "i4" or KIND == "u4":
        over = excess(h, KIND, EXACT)
        y -= tl.sum(tl.reshape(over, (CHUNKS, WIDE // PER)), 1)[None, :]
    if GROUP:
        if zeros is not None:
            y -= now[2] * tl.sum(tl.reshape(total, (CHUNKS, WIDE // PER)), 1)[None, :]
        y *= now[1]
    return y
