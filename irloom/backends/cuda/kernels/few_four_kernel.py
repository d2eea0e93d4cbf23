"""The kernel of products of a few rows by four-bit weights in fragments."""

# ruff: noqa: RUF005 (Triton joins tuples, but does not unpack them)
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false
# (tuples of a kernel grow, and its loops are unrolled, before there are types)

from __future__ import annotations

from .finish import finished
from .mode import INTERPRETED, dot, go_on, kernel, rounded, tl, wait
from .nibbles import cut, matrix, one_of, strip_of


@kernel
def few_four_kernel(
    out, x, words, scales, zeros, bias, residual, norm, T, out_row, x_row, residual_row, eps, scale, cap,
    N: tl.constexpr, K: tl.constexpr, SPAN: tl.constexpr, SIGNED: tl.constexpr, SCALE: tl.constexpr,
    ZERO: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr,
    SLICES: tl.constexpr, COLUMNS: tl.constexpr, STRIPS: tl.constexpr, PARTS: tl.constexpr,
    DEPTH: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """Rows ``x`` [T, K], at most ``COLUMNS / SLICES``, by words i16[N / 16, blocks, SPAN / 16, 256].

    ``scales`` i64[N, blocks] are four of ``SCALE`` each; ``zeros``, where there are some, four of ``ZERO``.
    The rows of a program's tensors are ``STRIPS`` by ``SLICES`` by 16 rows of the weight: each slice of ``k``
    has rows, and columns of ``x``, of its own, and what is of two different slices is left out of the sum.
    """
    go_on(CHAIN)
    BLOCKS: tl.constexpr = (K + 4 * SPAN - 1) // (4 * SPAN)
    STEPS: tl.constexpr = (BLOCKS + SLICES - 1) // SLICES
    M: tl.constexpr = STRIPS * SLICES * 16
    first = tl.program_id(0) * PARTS
    ring = begun(words, scales, zeros, first, N, BLOCKS, SPAN, SLICES, STRIPS, STEPS, GATED, PARTS, DEPTH)
    norms = norms_at(norm, 0, K, SPAN, SLICES, COLUMNS, STEPS)
    wait(CHAIN)
    xs = rows_at(x, T, x_row, 0, K, SPAN, SLICES, COLUMNS, STEPS)
    squares, sums = tl.zeros((COLUMNS,), tl.float32), ()
    for _ in tl.static_range(PARTS):
        sums = sums + (tl.zeros((M, COLUMNS), tl.float32),)
    for s in tl.static_range(STEPS):
        hs, totals, squares = prepared(xs, norms, squares, x, zeros, NORM)
        if s + 1 < STEPS:
            norms = norms_at(norm, s + 1, K, SPAN, SLICES, COLUMNS, STEPS)
            xs = rows_at(x, T, x_row, s + 1, K, SPAN, SLICES, COLUMNS, STEPS)
        for p in tl.static_range(PARTS):
            now, ring = ring[0], ring[1:]
            if s + (p + DEPTH) // PARTS < STEPS:
                part, later = first + (p + DEPTH) % PARTS, s + (p + DEPTH) // PARTS
                now_on = ahead(
                    words, scales, zeros, part, later, N, BLOCKS, SPAN, SLICES, STRIPS, STEPS, GATED
                )
                ring = ring + (now_on,)
            y = products(sums[0], now, hs, totals, x, zeros, SPAN, SIGNED, SCALE, ZERO)
            sums = sums[1:] + (y,)
    for p in tl.static_range(PARTS):
        y = of_slices(sums[p], SLICES, STRIPS)
        if NORM:
            each = tl.sum(tl.reshape(squares, (COLUMNS // SLICES, SLICES)), 1)
            y *= tl.rsqrt(each / K + eps)[None, None, :]
        finish(
            out, y, bias, residual, first + p, T, out_row, residual_row, scale, cap,
            N // 2 if GATED else N, GATED, ACT, CAPPED,
        )  # fmt: skip


@kernel
def begun(
    words, scales, zeros, first, N: tl.constexpr, BLOCKS: tl.constexpr, SPAN: tl.constexpr,
    SLICES: tl.constexpr, STRIPS: tl.constexpr, STEPS: tl.constexpr, GATED: tl.constexpr,
    PARTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The first ``DEPTH`` tiles."""
    ring = ()
    for d in tl.static_range(DEPTH):
        part, step = first + d % PARTS, d // PARTS
        ring = ring + (
            ahead(words, scales, zeros, part, step, N, BLOCKS, SPAN, SLICES, STRIPS, STEPS, GATED),
        )
    return ring


@kernel
def prepared(xs, norms, squares, x, zeros, NORM: tl.constexpr):
    """Entries of rows as the right operands of dots; their sums, where zeros need them; sums of squares."""
    hs, totals = (), ()
    for j in tl.static_range(4):
        h = xs[j].to(tl.float32)
        if NORM:
            squares += tl.sum(h * h, 1)
            h = rounded(h * norms[j], x.dtype.element_ty)
        totals = totals + (tl.sum(h.to(tl.float32), 1) if zeros is not None else 0.0,)
        hs = hs + (tl.trans(here(h.to(x.dtype.element_ty))),)
    return hs, totals, squares


@kernel
def here(h):
    """``h``, computed where it is: else every warp would compute what it reads of it."""
    if INTERPRETED:
        return h
    elif h.dtype == tl.float16:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [h], tl.float16, False, 2)
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [h], tl.bfloat16, False, 2)


@kernel
def products(
    sums, now, hs, totals, x, zeros, SPAN: tl.constexpr, SIGNED: tl.constexpr, SCALE: tl.constexpr,
    ZERO: tl.constexpr,
):  # fmt: skip
    """``sums`` with the products of a tile and the entries of rows."""
    for j in tl.static_range(4):
        a = matrix(cut(now[0], j, SIGNED, x.dtype.element_ty), sums.shape[0], SPAN)
        y = dot(a, hs[j], tl.zeros(sums.shape, tl.float32))
        if zeros is not None:
            y -= one_of(now[2], j, ZERO)[:, None] * totals[j][None, :]
        sums += y * one_of(now[1], j, SCALE)[:, None]
    return sums


@kernel
def ahead(
    words, scales, zeros, part, step, N: tl.constexpr, BLOCKS: tl.constexpr, SPAN: tl.constexpr,
    SLICES: tl.constexpr, STRIPS: tl.constexpr, STEPS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """What no kernel writes, of a part and a step: words, scales and zeros."""
    m = tl.arange(0, STRIPS * SLICES)
    strip, b = strip_of(part, m // SLICES, N, STRIPS, GATED), (m % SLICES) * STEPS + step
    at = words + ((strip * BLOCKS + b).to(tl.int64) * (SPAN * 16))[:, None, None]
    at = at + (tl.arange(0, SPAN // 16) * 256)[None, :, None] + tl.arange(0, 256)[None, None, :]
    there = ((strip < N // 16) & (b < BLOCKS))[:, None, None]
    tile = (tl.load(at, there, 0, eviction_policy="evict_first"),)
    r = tl.arange(0, STRIPS * SLICES * 16)
    strip, b = strip_of(part, r // 16 // SLICES, N, STRIPS, GATED), (r // 16 % SLICES) * STEPS + step
    at, there = (strip * 16 + r % 16) * BLOCKS + b, (strip < N // 16) & (b < BLOCKS)
    tile = tile + (tl.load(scales + at, there, 0),)
    if zeros is not None:
        tile = tile + (tl.load(zeros + at, there, 0),)
    return tile


@kernel
def entries_at(step, j, SPAN: tl.constexpr, SLICES: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr):
    """Which entries of a row a step has in each column, for span ``j`` [COLUMNS, SPAN]."""
    first = ((tl.arange(0, COLUMNS) % SLICES) * STEPS + step) * (4 * SPAN) + j * SPAN
    return first[:, None] + tl.arange(0, SPAN)[None, :]


@kernel
def rows_at(
    x, T, x_row, step, K: tl.constexpr, SPAN: tl.constexpr, SLICES: tl.constexpr, COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """Entries of rows for each span; 0 beyond their end, and in rows beyond the last."""
    t, tiles = tl.arange(0, COLUMNS) // SLICES, ()
    for j in tl.static_range(4):
        k = entries_at(step, j, SPAN, SLICES, COLUMNS, STEPS)
        tiles = tiles + (tl.load(x + (t * x_row)[:, None] + k, (t < T)[:, None] & (k < K), 0.0),)
    return tiles


@kernel
def norms_at(
    norm, step, K: tl.constexpr, SPAN: tl.constexpr, SLICES: tl.constexpr, COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """Entries of a norm's weight for each span; ones where there is none."""
    tiles = ()
    for j in tl.static_range(4):
        if norm is None:
            tiles = tiles + (1.0,)
        else:
            k = entries_at(step, j, SPAN, SLICES, COLUMNS, STEPS)
            tiles = tiles + (tl.load(norm + k, k < K, 0.0),)
    return tiles


@kernel
def of_slices(y, SLICES: tl.constexpr, STRIPS: tl.constexpr):
    """[STRIPS * SLICES * 16, COLUMNS] as sums [STRIPS, 16, COLUMNS / SLICES] over what is of one slice."""
    COLUMNS: tl.constexpr = y.shape[1]
    if SLICES > 1:
        row, column = tl.arange(0, y.shape[0]) // 16 % SLICES, tl.arange(0, COLUMNS) % SLICES
        y = tl.where(row[:, None] == column[None, :], y, 0.0)
    y = tl.sum(tl.reshape(y, (STRIPS, SLICES, 16, COLUMNS)), 1)
    return tl.sum(tl.reshape(y, (STRIPS, 16, COLUMNS // SLICES, SLICES)), 3)


@kernel
def finish(
    out, y, bias, residual, part, T, out_row, residual_row, scale, cap,
    N: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Store what becomes of the sums [strips, 16, tokens] of a part."""
    WIDE: tl.constexpr = y.shape[0] // 2 if GATED else y.shape[0]
    n = (part * WIDE + tl.arange(0, WIDE))[:, None] * 16 + tl.arange(0, 16)[None, :]
    t = tl.arange(0, y.shape[2])[None, None, :]
    up = y
    if GATED:
        y, up = tl.split(tl.permute(tl.reshape(y, (WIDE, 2, 16, y.shape[2])), (0, 2, 3, 1)))
    if bias is not None:
        y += tl.load(bias + n, n < N, 0.0).to(tl.float32)[:, :, None]
        if GATED:
            up += tl.load(bias + N + n, n < N, 0.0).to(tl.float32)[:, :, None]
    y = finished(y, up, scale, cap, GATED, ACT, CAPPED)
    there = (n < N)[:, :, None] & (t < T)
    if residual is not None:
        y += tl.load(residual + t * residual_row + n[:, :, None], there, 0.0).to(tl.float32)
    tl.store(out + t * out_row + n[:, :, None], rounded(y, out.dtype.element_ty), there)
