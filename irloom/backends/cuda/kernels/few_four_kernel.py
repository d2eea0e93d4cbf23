"""The kernel of products of a few rows by four-bit weights in fragments: of integers, on tensor cores.

A row's entries of a span become integers of 15 bits, a power of two of which is one, and these two digits of
eight bits. A bf16 has eight: entries that are not tiny beside the span's largest stay what they are. So the
weight's entries are never converted, and the sums of a span are exact.
"""

# ruff: noqa: RUF005 (Triton joins tuples, but does not unpack them)
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportOptionalSubscript=false
# (tuples of a kernel grow, and its loops are unrolled, before there are types)

from __future__ import annotations

from .finish import finished
from .mode import go_on, kernel, rounded, tl, wait
from .nibbles import cut_eight, in_turn, matrix_in_turn, one_of, strip_of

HIDDEN = tl.constexpr(12582912.0)
"""1.5 times the power of two whose floats are 1 apart: what is added to it lies in the lower bits."""


@kernel
def few_four_kernel(
    out, x, pairs, scales, zeros, bias, residual, norm, T, out_row, x_row, residual_row, eps, scale, cap,
    N: tl.constexpr, K: tl.constexpr, SPAN: tl.constexpr, SIGNED: tl.constexpr, SCALE: tl.constexpr,
    ZERO: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr,
    SLICES: tl.constexpr, COLUMNS: tl.constexpr, STRIPS: tl.constexpr, DEPTH: tl.constexpr,
    CHAIN: tl.constexpr,
):  # fmt: skip
    """Rows ``x`` [T, K], at most ``COLUMNS / SLICES``, by bytes [N / 16, blocks, SPAN / 16, 512] of two.

    ``scales`` i64[N, blocks] are four of ``SCALE`` each; ``zeros``, where there are some, four of ``ZERO``.
    The rows of a program's tensors are ``STRIPS`` by ``SLICES`` by 16 rows of the weight: each slice of ``k``
    has rows, and columns of ``x``, of its own, and what is of two different slices is left out of the sum.
    A slice is read two spans at a time, ``DEPTH`` such tiles ahead.
    """
    go_on(CHAIN)
    BLOCKS: tl.constexpr = (K + 4 * SPAN - 1) // (4 * SPAN)
    STEPS: tl.constexpr = (BLOCKS + SLICES - 1) // SLICES
    H: tl.constexpr = N // 2 if GATED else N
    part, ring = tl.program_id(0), ()
    for i in tl.static_range(DEPTH):
        ring = ring + (ahead(pairs, scales, zeros, part, i, N, BLOCKS, SPAN, SLICES, STRIPS, STEPS, GATED),)
    norms = rows_at(norm, T, 0, 0, K, SPAN, SLICES, COLUMNS, STEPS)
    wait(CHAIN)
    xs = rows_at(x, T, x_row, 0, K, SPAN, SLICES, COLUMNS, STEPS)
    added = residual_of(residual, part, T, residual_row, H, STRIPS, COLUMNS // SLICES, GATED)
    squares, factor = tl.zeros((COLUMNS, SPAN), tl.float32), 1.0
    sums = 0.0
    for s in tl.static_range(STEPS):
        hs, one, squares = integers(xs, norms, squares, x, zeros, NORM, SIGNED)
        if s + 1 < STEPS:
            norms = rows_at(norm, T, 0, s + 1, K, SPAN, SLICES, COLUMNS, STEPS)
            xs = rows_at(x, T, x_row, s + 1, K, SPAN, SLICES, COLUMNS, STEPS)
        elif NORM:
            each = tl.sum(tl.reshape(tl.sum(squares, 1), (COLUMNS // SLICES, SLICES)), 1)
            factor = tl.rsqrt(each / K + eps)[None, None, :]
        now = ring[:2]
        for i in tl.static_range(2):
            ring = ring[1:]
            if 2 * s + i + DEPTH < 2 * STEPS:
                ring = ring + (
                    ahead(
                        pairs, scales, zeros, part, 2 * s + i + DEPTH, N, BLOCKS, SPAN, SLICES, STRIPS,
                        STEPS, GATED,
                    ),
                )  # fmt: skip
        y = products(now, hs, zeros, SPAN, SLICES, STRIPS, SIGNED, SCALE, ZERO) * one[None, :]
        sums = y if s == 0 else sums + y
    y = of_slices(sums, SLICES, STRIPS) * factor
    finish(out, y, bias, added, part, T, out_row, scale, cap, H, GATED, ACT, CAPPED)


@kernel
def ahead(
    pairs, scales, zeros, part, i: tl.constexpr, N: tl.constexpr, BLOCKS: tl.constexpr, SPAN: tl.constexpr,
    SLICES: tl.constexpr, STRIPS: tl.constexpr, STEPS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """What no kernel writes: two spans of each slice, and with the first two of a block what lies beside it.
    Bytes of what is not there may be any: their scales are 0.
    """
    m = tl.arange(0, STRIPS * SLICES)
    strip, b = strip_of(part, m // SLICES, N, STRIPS, GATED), (m % SLICES) * STEPS + i // 2
    at = pairs + ((strip * BLOCKS + b).to(tl.int64) * (SPAN * 32) + i % 2 * (SPAN * 16))[:, None, None]
    at = at + (tl.arange(0, SPAN // 32) * 512)[None, :, None] + tl.arange(0, 512)[None, None, :]
    there = (strip < N // 16) if BLOCKS % SLICES == 0 else (strip < N // 16) & (b < BLOCKS)
    tile = (tl.load(at, there[:, None, None], eviction_policy="evict_first"),)
    if i % 2 == 0:
        r = tl.arange(0, STRIPS * SLICES * 16)
        strip, b = strip_of(part, r // 16 // SLICES, N, STRIPS, GATED), (r // 16 % SLICES) * STEPS + i // 2
        at, there = (strip * 16 + r % 16) * BLOCKS + b, (strip < N // 16) & (b < BLOCKS)
        tile = tile + (tl.load(scales + at, there, 0),)
        if zeros is not None:
            tile = tile + (tl.load(zeros + at, there, 0),)
    return tile


@kernel
def rows_at(
    x, T, x_row, step: tl.constexpr, K: tl.constexpr, SPAN: tl.constexpr, SLICES: tl.constexpr,
    COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Entries [COLUMNS, SPAN] of rows for each span of a block; 0 beyond their end and the last row's.

    With a ``x_row`` of 0 all rows are one; ones where there is none.
    """
    c, tiles = tl.arange(0, COLUMNS), ()
    for j in tl.static_range(4):
        if x is None:
            tiles = tiles + (1.0,)
        else:
            k = ((c % SLICES) * STEPS + step)[:, None] * (4 * SPAN) + j * SPAN + tl.arange(0, SPAN)[None, :]
            at, t = x + (c // SLICES * x_row)[:, None] + k, (c // SLICES)[:, None]
            if COLUMNS == SLICES and K % (4 * SPAN * SLICES) == 0:
                tiles = tiles + (tl.load(at),)
            else:
                tiles = tiles + (tl.load(at, (t < T) & (k < K), 0.0),)
    return tiles


@kernel
def integers(xs, norms, squares, x, zeros, NORM: tl.constexpr, SIGNED: tl.constexpr):
    """Of each span upper and lower digits [SPAN, COLUMNS], and sums [COLUMNS] where weights are not what
    their bits say; what one is worth [COLUMNS]; sums of squares.
    """
    rows, most, hs = (), 0, ()
    for j in tl.static_range(4):
        h = xs[j].to(tl.float32)
        if NORM:
            squares += h * h
            h = rounded(h * norms[j], x.dtype.element_ty).to(tl.float32)
        rows, most = rows + (h,), tl.maximum(most, h.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    top = tl.max(most, 1)
    unit = tl.maximum(top & 0x7F800000, 32 << 23)
    by = ((140 << 23) - (unit - (127 << 23))).to(tl.float32, bitcast=True)[:, None]
    for j in tl.static_range(4):
        bits = (rows[j] * by + HIDDEN).to(tl.int32, bitcast=True)
        upper, lower = in_turn(((bits + 128) >> 8).to(tl.int8)), in_turn(bits.to(tl.int8))
        total = tl.sum(rows[j] * (16.0 * by), 1) if zeros is not None or not SIGNED else 0.0
        hs = hs + ((tl.trans(upper), tl.trans(lower), total),)
    one = tl.where(top < 0x7F800000, (unit - (17 << 23)).to(tl.float32, bitcast=True), float("nan"))
    return hs, one, squares


@kernel
def products(
    now, hs, zeros, SPAN: tl.constexpr, SLICES: tl.constexpr, STRIPS: tl.constexpr,
    SIGNED: tl.constexpr, SCALE: tl.constexpr, ZERO: tl.constexpr,
):  # fmt: skip
    """Sums [STRIPS * SLICES * 16, COLUMNS] of a block of each slice, in what ``one`` is worth."""
    M: tl.constexpr = STRIPS * SLICES * 16
    sums = 0.0
    for j in tl.static_range(4):
        a = matrix_in_turn(cut_eight(now[j // 2][0], j % 2, SIGNED), M, SPAN)
        y = tl.dot(a, hs[j][0], out_dtype=tl.int32) * 256 + tl.dot(a, hs[j][1], out_dtype=tl.int32)
        y = y.to(tl.float32)
        if zeros is not None:
            y += ((0.0 if SIGNED else 8.0) - one_of(now[0][2], j, ZERO))[:, None] * hs[j][2][None, :]
        elif not SIGNED:
            y += 8.0 * hs[j][2][None, :]
        y *= one_of(now[0][1], j, SCALE)[:, None]
        sums = y if j == 0 else sums + y
    return sums


@kernel
def of_slices(y, SLICES: tl.constexpr, STRIPS: tl.constexpr):
    """[STRIPS * SLICES * 16, COLUMNS] as sums [STRIPS, 16, COLUMNS / SLICES] over what is of one slice."""
    COLUMNS: tl.constexpr = y.shape[1]
    if SLICES > 1:
        row, column = tl.arange(0, y.shape[0]) // 16 % SLICES, tl.arange(0, COLUMNS) % SLICES
        y = tl.where(row[:, None] == column[None, :], y, 0.0)
    y = tl.sum(tl.reshape(y, (y.shape[0], COLUMNS // SLICES, SLICES)), 2)
    return tl.sum(tl.reshape(y, (STRIPS, SLICES, 16, COLUMNS // SLICES)), 1)


@kernel
def places(part, N: tl.constexpr, STRIPS: tl.constexpr, ROWS: tl.constexpr, GATED: tl.constexpr):
    """Columns [strips, 16, 1] and rows [1, 1, ROWS] of what a part makes."""
    WIDE: tl.constexpr = STRIPS // 2 if GATED else STRIPS
    n = (part * WIDE + tl.arange(0, WIDE))[:, None] * 16 + tl.arange(0, 16)[None, :]
    return n[:, :, None], tl.arange(0, ROWS)[None, None, :]


@kernel
def residual_of(
    residual, part, T, residual_row, N: tl.constexpr, STRIPS: tl.constexpr, ROWS: tl.constexpr,
    GATED: tl.constexpr,
):  # fmt: skip
    """What is added to a part's results: read while the weight is."""
    if residual is None:
        return 0.0
    else:
        n, t = places(part, N, STRIPS, ROWS, GATED)
        return tl.load(residual + t * residual_row + n, (n < N) & (t < T), 0.0).to(tl.float32)


@kernel
def finish(
    out, y, bias, added, part, T, out_row, scale, cap,
    N: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Store what becomes of the sums [strips, 16, rows] of a part."""
    n, t = places(part, N, y.shape[0], y.shape[2], GATED)
    up = y
    if GATED:
        y, up = tl.split(tl.permute(tl.reshape(y, (y.shape[0] // 2, 2, 16, y.shape[2])), (0, 2, 3, 1)))
    if bias is not None:
        y += tl.load(bias + n, n < N, 0.0).to(tl.float32)
        if GATED:
            up += tl.load(bias + N + n, n < N, 0.0).to(tl.float32)
    y = finished(y, up, scale, cap, GATED, ACT, CAPPED) + added
    tl.store(out + t * out_row + n, rounded(y, out.dtype.element_ty), (n < N) & (t < T))
