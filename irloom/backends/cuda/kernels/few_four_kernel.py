"""The kernel of products of a few rows by four-bit weights in fragments: of integers, on tensor cores."""

# ruff: noqa: RUF005 (Triton joins tuples, but does not unpack them)
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportOptionalSubscript=false
# (tuples of a kernel grow, and its loops are unrolled, before there are types)

from __future__ import annotations

from .finish import finished
from .mode import go_on, kernel, rounded, tl, wait
from .nibbles import cut_eight, fragments_of_slices, one_of, strip_of
from .row_digits import digits_at, factors


@kernel
def few_four_kernel(
    out, digits, beside, pairs, scales, zeros, bias, residual, T, out_row, residual_row, eps, scale, cap,
    N: tl.constexpr, K: tl.constexpr, SPAN: tl.constexpr, SIGNED: tl.constexpr, SCALE: tl.constexpr,
    ZERO: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr,
    SETS: tl.constexpr, SLICES: tl.constexpr, LAPS: tl.constexpr, STEPS: tl.constexpr, STRIPS: tl.constexpr,
    DEPTH: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """``Digits`` of at most ``4 SETS`` rows by bytes [N / 16, blocks, SPAN / 16, 512] of two entries.

    ``scales`` i64[N, blocks] are four of ``SCALE`` each; ``zeros``, where there are some, four of ``ZERO``.
    A program has ``STRIPS`` strips of 16 rows of the weight, and a warp of it slices of ``k``, whose sums are
    added at the end. A slice is read two spans at a time, ``DEPTH`` such tiles ahead, in laps of ``STEPS``
    blocks: what is in flight stays in registers, and no lap carries them to the next.
    """
    go_on(CHAIN)
    BLOCKS: tl.constexpr = (K + 4 * SPAN - 1) // (4 * SPAN)
    H: tl.constexpr = N // 2 if GATED else N
    part = tl.program_id(0)
    ring = begun(pairs, scales, zeros, part, 0, N, BLOCKS, SPAN, SLICES, LAPS * STEPS, STRIPS, DEPTH, GATED)
    wait(CHAIN)
    added = residual_of(residual, part, T, residual_row, H, STRIPS, 4 * SETS, GATED)
    factor = factors(beside, eps, K, BLOCKS, 4 * SETS) if NORM else 1.0
    sums = lap(
        ring, digits, beside, pairs, scales, zeros, part, 0, T, N, BLOCKS, SPAN, SIGNED, SCALE, ZERO, SETS,
        SLICES, LAPS, STEPS, STRIPS, DEPTH, GATED,
    )  # fmt: skip
    if LAPS > 1:
        for i in tl.range(1, LAPS):
            ring = begun(
                pairs, scales, zeros, part, i * STEPS, N, BLOCKS, SPAN, SLICES, LAPS * STEPS, STRIPS, DEPTH,
                GATED,
            )  # fmt: skip
            sums += lap(
                ring, digits, beside, pairs, scales, zeros, part, i * STEPS, T, N, BLOCKS, SPAN, SIGNED,
                SCALE, ZERO, SETS, SLICES, LAPS, STEPS, STRIPS, DEPTH, GATED,
            )  # fmt: skip
    y = tl.reshape(tl.sum(sums, 0) * factor, (STRIPS, 16, 4 * SETS))
    finish(out, y, bias, added, part, T, out_row, scale, cap, H, GATED, ACT, CAPPED)


@kernel
def begun(
    pairs, scales, zeros, part, step, N: tl.constexpr, BLOCKS: tl.constexpr, SPAN: tl.constexpr,
    SLICES: tl.constexpr, EACH: tl.constexpr, STRIPS: tl.constexpr, DEPTH: tl.constexpr,
    GATED: tl.constexpr,
):  # fmt: skip
    """The first ``DEPTH`` tiles of a lap, which begins with the ``step``-th of ``EACH`` blocks."""
    ring = ()
    for i in tl.static_range(DEPTH):
        tile = ahead(
            pairs, scales, zeros, part, step + i // 2, i % 2, N, BLOCKS, SPAN, SLICES, EACH, STRIPS, GATED
        )
        ring = ring + (tile,)
    return ring


@kernel
def lap(
    ring, digits, beside, pairs, scales, zeros, part, step, T, N: tl.constexpr, BLOCKS: tl.constexpr,
    SPAN: tl.constexpr, SIGNED: tl.constexpr, SCALE: tl.constexpr, ZERO: tl.constexpr, SETS: tl.constexpr,
    SLICES: tl.constexpr, LAPS: tl.constexpr, STEPS: tl.constexpr, STRIPS: tl.constexpr,
    DEPTH: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Sums [SLICES, 16 STRIPS, 4 SETS] of ``STEPS`` blocks of each slice, its ``step``-th and next ones."""
    TOTALS: tl.constexpr = zeros is not None or not SIGNED
    EACH: tl.constexpr = LAPS * STEPS
    sums = 0.0
    for s in tl.static_range(STEPS):
        b = tl.arange(0, SLICES) * EACH + step + s
        hs, one = digits_at(digits, beside, T, b, TOTALS, BLOCKS, SPAN, SETS)
        now = ring[:2]
        for i in tl.static_range(2):
            ring = ring[1:]
            if 2 * s + i + DEPTH < 2 * STEPS:
                later = step + (2 * s + i + DEPTH) // 2
                tile = ahead(
                    pairs, scales, zeros, part, later, (i + DEPTH) % 2, N, BLOCKS, SPAN, SLICES, EACH, STRIPS,
                    GATED,
                )  # fmt: skip
                ring = ring + (tile,)
        y = products(now, hs, zeros, SPAN, STRIPS, SIGNED, SCALE, ZERO) * one[:, None, :]
        sums = y if s == 0 else sums + y
    return sums


@kernel
def ahead(
    pairs, scales, zeros, part, step, HALF: tl.constexpr, N: tl.constexpr, BLOCKS: tl.constexpr,
    SPAN: tl.constexpr, SLICES: tl.constexpr, EACH: tl.constexpr, STRIPS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """What no kernel writes: half of a block of each slice, and with the first half what lies beside it.
    Bytes of what is not there may be any: their scales are 0.
    """
    m = tl.arange(0, STRIPS * SLICES)
    strip, b = strip_of(part, m // SLICES, N, STRIPS, GATED), m % SLICES * EACH + step
    at = pairs + ((strip * BLOCKS + b).to(tl.int64) * (SPAN * 32) + HALF * (SPAN * 16))[:, None, None]
    at = at + (tl.arange(0, SPAN // 32) * 512)[None, :, None] + tl.arange(0, 512)[None, None, :]
    there = (strip < N // 16) if BLOCKS == SLICES * EACH else (strip < N // 16) & (b < BLOCKS)
    tile = (tl.load(at, there[:, None, None], eviction_policy="evict_first"),)
    if HALF == 0:
        tile = tile + (by_row(scales, part, step, N, BLOCKS, SLICES, EACH, STRIPS, GATED),)
        if zeros is not None:
            tile = tile + (by_row(zeros, part, step, N, BLOCKS, SLICES, EACH, STRIPS, GATED),)
    return tile


@kernel
def by_row(
    words, part, step, N: tl.constexpr, BLOCKS: tl.constexpr, SLICES: tl.constexpr, EACH: tl.constexpr,
    STRIPS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Words [SLICES, 16 STRIPS] of rows of blocks. Of eight rows at a time there are fewer than threads: so
    Triton has each thread read those that it multiplies by, and moves none between threads, for which all
    of them would wait.
    """
    b, rows = (tl.arange(0, SLICES) * EACH + step)[:, None], ()
    for i in tl.static_range(2 * STRIPS):
        strip = strip_of(part, i // 2, N, STRIPS, GATED)
        at = (strip * 16 + i % 2 * 8 + tl.arange(0, 8)[None, :]) * BLOCKS + b
        rows = rows + (tl.load(words + at, (strip < N // 16) & (b < BLOCKS), 0),)
    return joined(rows, SLICES, 2 * STRIPS)


@kernel
def joined(rows, SLICES: tl.constexpr, COUNT: tl.constexpr):
    """Tensors [SLICES, 8] after each other, a power of two of them: [SLICES, 8 COUNT]."""
    if COUNT == 1:
        return rows[0]
    else:
        first = joined(rows[: COUNT // 2], SLICES, COUNT // 2)
        both = tl.join(first, joined(rows[COUNT // 2 :], SLICES, COUNT // 2))
        return tl.reshape(tl.permute(both, (0, 2, 1)), (SLICES, 8 * COUNT))


@kernel
def products(
    now, hs, zeros, SPAN: tl.constexpr, STRIPS: tl.constexpr, SIGNED: tl.constexpr, SCALE: tl.constexpr,
    ZERO: tl.constexpr,
):  # fmt: skip
    """Sums [slices, 16 STRIPS, rows] of a block of each slice, in what one is worth."""
    sums = 0.0
    for j in tl.static_range(4):
        a = fragments_of_slices(cut_eight(now[j // 2][0], j % 2, SIGNED), STRIPS, SPAN)
        y = tl.dot(a, hs[j][0], out_dtype=tl.int32)
        upper, lower = tl.split(tl.reshape(y, (y.shape[0], y.shape[1], y.shape[2] // 2, 2)))
        y = (upper * 256 + lower).to(tl.float32)
        if zeros is not None:
            y += ((0.0 if SIGNED else 8.0) - one_of(now[0][2], j, ZERO))[:, :, None] * hs[j][1][:, None, :]
        elif not SIGNED:
            y += 8.0 * hs[j][1][:, None, :]
        y *= one_of(now[0][1], j, SCALE)[:, :, None]
        sums = y if j == 0 else sums + y
    return sums


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
