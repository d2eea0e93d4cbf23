"""Products of a few rows by four-bit weights: eight entries a word, made floats by an operation or two each.

An entry's bits are cut out under the exponent of 128 or of 2048, which makes a float that much more than the
entry, and what is too much in a group is taken off its sum: entries are not converted, nor is a zero
subtracted from each. That costs some of the 24 bits of a sum, which rows of f32 can tell, so for these it is
taken off each entry.
"""

# ruff: noqa: RUF005 (Triton joins tuples, but does not unpack them)
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false
# (tuples of a kernel grow, and its loops are unrolled, before there are types)

from __future__ import annotations

from .few_rows import finish, norm_tile, per_thread, row_tile, rows_of, scale_tile, weight_tile
from .mode import INTERPRETED, go_on, kernel, tl, wait

# ptxas makes two operations of (a & b) ^ c, but for the one that can do both
_CUT = tl.constexpr(
    tuple(
        f"lop3.b32 $0, $1, {mask:#010x}, {exponent + flip:#010x}, 0x6a;"
        for mask, exponent, sign in ((0xF000, 0x45000000, 0x8000), (0xF0000, 0x43000000, 0x80000))
        for flip in (0, sign)
    )
)


@kernel
def entry(words, SHIFT: tl.constexpr, HIGH: tl.constexpr, SIGNED: tl.constexpr, EXACT: tl.constexpr):
    """The entry at bit 16 (``HIGH``) or 12 of shifted words, plus 128 or 2048, which ``EXACT`` takes off; 8
    more where ``SIGNED``.
    """
    w = words << SHIFT if SHIFT > 0 else words >> -SHIFT
    if INTERPRETED:
        MASK: tl.constexpr = 0x000F0000 if HIGH else 0x0000F000
        EXCESS: tl.constexpr = (0x43000000 if HIGH else 0x45000000) + (MASK & 0x00088000 if SIGNED else 0)
        w = (w & MASK) ^ EXCESS
    else:
        TEXT: tl.constexpr = _CUT[2 * HIGH + SIGNED]
        w = tl.inline_asm_elementwise(TEXT, "=r,r", [w], dtype=tl.int32, is_pure=True, pack=1)
    y = w.to(tl.float32, bitcast=True)
    if EXACT:
        y -= 128.0 if HIGH else 2048.0
    return y


@kernel
def by_entry(h, WORDS: tl.constexpr):
    """Entries [WORDS * 8] as eight tensors: the first of each word, the second, ..."""
    even, odd = tl.split(tl.reshape(h, (WORDS, 2, 2, 2)))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    h0, h4 = tl.split(a)
    h2, h6 = tl.split(c)
    h1, h5 = tl.split(b)
    h3, h7 = tl.split(d)
    return h0, h1, h2, h3, h4, h5, h6, h7


@kernel
def word_sums(words, h, SIGNED: tl.constexpr, EXACT: tl.constexpr):
    """Products of a word's entries with those of ``h``, summed."""
    y = entry(words, 16, True, SIGNED, EXACT) * h[0][None, :]
    y += entry(words, 8, False, SIGNED, EXACT) * h[1][None, :]
    y += entry(words, 8, True, SIGNED, EXACT) * h[2][None, :]
    y += entry(words, 0, False, SIGNED, EXACT) * h[3][None, :]
    y += entry(words, 0, True, SIGNED, EXACT) * h[4][None, :]
    y += entry(words, -8, False, SIGNED, EXACT) * h[5][None, :]
    y += entry(words, -8, True, SIGNED, EXACT) * h[6][None, :]
    y += entry(words, -12, True, SIGNED, EXACT) * h[7][None, :]
    return y


@kernel
def excess(h, EXACT: tl.constexpr):
    """What ``word_sums`` has too much, and the sum of ``h``."""
    low, high = h[1] + h[3] + h[5], h[0] + h[2] + h[4] + h[6] + h[7]
    over = 0.0 * low if EXACT else 128.0 * high + 2048.0 * low
    return over[None, :], (high + low)[None, :]


@kernel
def words_ahead(
    words, scales, zeros, norm, rows, step, N: tl.constexpr, K: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr, SIGNED: tl.constexpr,
):  # fmt: skip
    """What no kernel writes of ``BK`` entries: their words, scales and zeros, and the norm."""
    w = weight_tile(words, rows, step, N, K // 8, BN, BK // 8)
    scale = scale_tile(scales, rows, step, N, K, BK, WIDE, 1, GROUP)
    zero = 8.0
    if zeros is not None:
        zero = scale_tile(zeros, rows, step, N, K, BK, WIDE, 1, GROUP)
        if SIGNED:
            zero += 8.0
    elif not SIGNED:
        zero = 0.0
    return w, scale, zero, norm_tile(norm, step, K, BK)


@kernel
def small_int4_kernel(
    out, x, words, scales, zeros, bias, residual, norm, T, out_row, x_row, residual_row, eps, scale, cap,
    N: tl.constexpr, K: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr,
    CAPPED: tl.constexpr, SIGNED: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, WIDE: tl.constexpr, DEPTH: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """Rows ``x`` [T, K], at most ``ROWS``, by a weight of words i32[N, K / 8]; ``GROUP`` entries share one of
    ``scales`` [N, K / GROUP] (and of ``zeros``). ``WIDE`` entries are in one thread, and in one group.
    """
    go_on(CHAIN)
    STEPS: tl.constexpr = (K + BK - 1) // BK
    CHUNKS: tl.constexpr = BK // WIDE
    EXACT: tl.constexpr = x.dtype.element_ty == tl.float32
    rows = rows_of(N, BN, GATED)
    ring = ()
    for s in tl.static_range(DEPTH):
        ring = ring + (words_ahead(words, scales, zeros, norm, rows, s, N, K, BN, BK, WIDE, GROUP, SIGNED),)
    if bias is not None:
        bias = tl.load(bias + rows, rows < N, 0.0).to(tl.float32)
    wait(CHAIN)
    sums, squares = (), ()
    for _ in tl.static_range(ROWS):
        sums = sums + (tl.zeros((BN, CHUNKS), tl.float32),)
        squares = squares + (tl.zeros((1, CHUNKS), tl.float32),)
    for s in tl.static_range(STEPS):
        w, by, zero, g = ring[0]
        ring = ring[1:]
        if s + DEPTH < STEPS:
            later = words_ahead(
                words, scales, zeros, norm, rows, s + DEPTH, N, K, BN, BK, WIDE, GROUP, SIGNED
            )
            ring = ring + (later,)
        more, more_squares = (), ()
        for t in tl.static_range(ROWS):
            h = row_tile(x, t, T, x_row, s, K, BK)
            more_squares = more_squares + (squares[t] + per_thread(h * h, 1, CHUNKS, WIDE),)
            entries = by_entry(h * g, BK // 8)
            part = per_thread(word_sums(w, entries, SIGNED, EXACT), BN, CHUNKS, WIDE // 8)
            over, total = excess(entries, EXACT)
            part -= per_thread(over, 1, CHUNKS, WIDE // 8) + zero * per_thread(total, 1, CHUNKS, WIDE // 8)
            more = more + (sums[t] + part * by,)
        sums, squares = more, more_squares
    for t in tl.static_range(ROWS):
        y = tl.sum(sums[t], 1)
        if NORM:
            y *= tl.rsqrt(tl.sum(squares[t]) / K + eps)
        finish(out, y, t, T, bias, residual, out_row, residual_row, scale, cap, N, BN, GATED, ACT, CAPPED)
