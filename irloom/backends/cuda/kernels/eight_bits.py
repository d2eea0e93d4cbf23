"""One row rounded to e4m3 by a weight of e4m3: pairs of entries are multiplied as they are, in f16.

Two such entries have a product of eight bits, which f16 holds. So entries become pairs of f16, by one
operation for two, and eight products of each half of a pair are summed before f32 takes over: the roundings
in between are an eighth of the one that makes the result a bf16. A row is made a 64th of what it is, so that
sixteen products of the largest entries stay below the largest f16, and the smallest is a number of f16 still.

A program goes through the weight with all others, some rows at a time: what it does to its own row in front,
norm and rounding, is done once for all that it reads. Its own row stays in registers.
"""

# ruff: noqa: RUF005 (Triton joins tuples, but does not unpack them)
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false
# (tuples of a kernel grow, and its loops are unrolled, before there are types)

from __future__ import annotations

from dataclasses import dataclass

from .few_rows import ends_of, finish, residual_of, rows_of, scale_tile, weight_tile
from .mode import INTERPRETED, go_on, kernel, rounded, tl, wait
from .words import e4m3_byte, entries_of, norm_pair, norm_words, packed

LESS = tl.constexpr(1 / 64)
"""What a row's entries are multiplied by."""

_WORD = """
mov.b32 {{low, high}}, ${word};
cvt.rn.f16x2.e4m3x2 pair, low;
fma.rn.f16x2 sum, pair, ${first}, sum;
cvt.rn.f16x2.e4m3x2 pair, high;
fma.rn.f16x2 sum, pair, ${second}, sum;
"""
_SUM = tl.constexpr(f"""
{{
.reg .b16 low, high;
.reg .b32 pair, sum;
.reg .f32 one, other;
mov.b32 sum, 0;
{"".join(_WORD.format(word=1 + w, first=5 + 2 * w, second=6 + 2 * w) for w in range(4))}
mov.b32 {{low, high}}, sum;
cvt.f32.f16 one, low;
cvt.f32.f16 other, high;
add.f32 $0, one, other;
}}
""")


_ROUND = tl.constexpr("""
{
.reg .b16 two;
.reg .b32 pair, less;
cvt.rn.satfinite.e4m3x2.f32 two, $2, $1;
cvt.rn.f16x2.e4m3x2 pair, two;
mov.b32 less, 0x24002400;
mul.rn.f16x2 $0, pair, less;
}
""")


@dataclass(frozen=True)
class Sweep:
    """``programs`` on each multiprocessor go through a weight, ``rows`` of it at a time and 16 bytes of each
    a thread, with ``depth`` such tiles in flight.
    """

    rows: int
    programs: int
    warps: int
    depth: int

    @property
    def registers(self) -> int:
        """Of a thread, so that all programs of a multiprocessor are there at once."""
        return min(255, (1 << 16) // (self.programs * self.warps * 32) // 8 * 8)


@kernel
def sweep_kernel(
    out, x, words, scales, bias, residual, norm, out_row, residual_row, eps, scale, cap,
    N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr,
    ACT: tl.constexpr, CAPPED: tl.constexpr, SHARE: tl.constexpr, GROUP: tl.constexpr, ROUND: tl.constexpr,
    PARTS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DEPTH: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """A row ``x`` i32[K / 2], words of two entries of ``KIND``, by a weight i32[N, K / 4]; ``norm`` is as the
    row is, or [K] of another element.

    ``SHARE`` rows (0: all) share one of ``scales``, by ``GROUP`` entries (0: whole rows); ``ROUND`` entries
    of ``x`` share one. Each program has ``PARTS`` of ``BN`` rows.
    """
    go_on(CHAIN)
    STEPS: tl.constexpr = (K + BK - 1) // BK
    CHUNKS: tl.constexpr = BK // 16
    first, apart = tl.program_id(0), tl.num_programs(0)
    ring = ()
    for q in tl.static_range(DEPTH):
        ring = ring + (
            _ahead(words, scales, first + q // STEPS * apart, q % STEPS, N, K, GATED, SHARE, GROUP, BN, BK),
        )
    ends = ends_of(scales, bias, first, N, GATED, SHARE, GROUP, BN)
    wait(CHAIN)
    added = residual_of(residual, first, 0, 1, residual_row, N, BN, GATED)
    rows, factor, largest = _row(x, norm, eps, K, NORM, ROUND, STEPS, CHUNKS, KIND)
    xs = ()
    for s in tl.static_range(STEPS):
        xs = xs + (_pairs(rows, norm, factor, largest, s, K, NORM, ROUND, CHUNKS, KIND),)
    for i in range(PARTS):
        part = first + i * apart
        ends_next = ends_of(scales, bias, part + apart, N, GATED, SHARE, GROUP, BN)
        added_next = residual_of(residual, part + apart, 0, 1, residual_row, N, BN, GATED)
        sums = tl.zeros((BN, CHUNKS), tl.float32)
        for s in tl.static_range(STEPS):
            now = ring[0]
            later = part + (s + DEPTH) // STEPS * apart
            ring = ring[1:] + (
                _ahead(words, scales, later, (s + DEPTH) % STEPS, N, K, GATED, SHARE, GROUP, BN, BK),
            )
            y = _products(_four(now[0]), xs[s][0])
            if ROUND < K:
                y *= xs[s][1]
            if GROUP:
                y *= now[1]
            sums += y
        y = tl.sum(sums, 1) * (ends[0] / LESS)
        if ROUND == K:
            y *= xs[0][1]
        finish(out, y + ends[1], added, part, 0, 1, out_row, scale, cap, N, BN, GATED, ACT, CAPPED)
        ends, added = ends_next, added_next


@kernel
def _ahead(
    words, scales, part, step, N: tl.constexpr, K: tl.constexpr, GATED: tl.constexpr, SHARE: tl.constexpr,
    GROUP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Words of a part and ``BK`` entries, and the scales of groups."""
    tile = (weight_tile(words, part, step, N, K // 4, GATED, BN, BK // 4),)
    if GROUP:
        tile = tile + (scale_tile(scales, rows_of(part, N, BN, GATED), step, N, K, BK, 16, SHARE, GROUP),)
    return tile


@kernel
def _row(
    x, norm, eps, K: tl.constexpr, NORM: tl.constexpr, ROUND: tl.constexpr, STEPS: tl.constexpr,
    CHUNKS: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Words of a row, what its entries are multiplied by to be normed, and its largest entry then."""
    rows, squares, most = (), tl.zeros((CHUNKS, 4), tl.float32), tl.zeros((CHUNKS, 4), tl.float32)
    for i in tl.static_range(2 * STEPS):
        rows = rows + (_words(x, i, K, CHUNKS),)
    for i in tl.static_range(2 * STEPS):
        low, high = entries_of(rows[i], KIND, True)
        if NORM:
            squares += low * low + high * high
        if ROUND == K:
            by_low, by_high = _norm_words(norm, i, K, CHUNKS, KIND)
            most = tl.maximum(most, tl.maximum(tl.abs(low * by_low), tl.abs(high * by_high)))
    factor, largest = 1.0, 0.0
    if NORM:
        factor = tl.rsqrt(tl.sum(squares) / K + eps)
    if ROUND == K:
        largest = tl.max(most) * factor
        if NORM:
            largest, _ = entries_of(packed(largest, largest, KIND), KIND, True)
    return rows, factor, largest


@kernel
def _words(x, half, K: tl.constexpr, CHUNKS: tl.constexpr):
    """Words [CHUNKS, 4], of two entries each, of a row."""
    k = _places(half, CHUNKS)
    return tl.load(x + k, k < K // 2, 0)


@kernel
def _places(half, CHUNKS: tl.constexpr):
    """Of words: even halves are the first eight entries of each 16 of a step, odd ones the others."""
    return (half // 2 * CHUNKS + tl.arange(0, CHUNKS)[:, None]) * 8 + half % 2 * 4 + tl.arange(0, 4)[None, :]


@kernel
def _norm_words(norm, half, K: tl.constexpr, CHUNKS: tl.constexpr, KIND: tl.constexpr):
    """Entries of a norm's weight, the first of each word and the second; ones where there is none."""
    low, high = 1.0, 1.0
    if norm is not None:
        k = _places(half, CHUNKS)
        low, high = norm_pair(norm_words(norm, k, k < K // 2), KIND)
    return low, high


@kernel
def _pairs(
    rows, norm, factor, largest, step, K: tl.constexpr, NORM: tl.constexpr, ROUND: tl.constexpr,
    CHUNKS: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """A step's entries rounded to e4m3, for each 16 of them [1, CHUNKS] eight pairs of f16, and their scales
    [1, CHUNKS], or the one of all.
    """
    words, most = (), tl.zeros((CHUNKS, 4), tl.float32)
    for i in tl.static_range(2):
        half = rows[2 * step + i]
        if NORM:
            low, high = entries_of(half, KIND, True)
            by_low, by_high = _norm_words(norm, 2 * step + i, K, CHUNKS, KIND)
            half = packed(low * by_low * factor, high * by_high * factor, KIND)
        low, high = entries_of(half, KIND, True)
        most = tl.maximum(most, tl.maximum(tl.abs(low), tl.abs(high)))
        words = words + (half,)
    scale = largest
    if ROUND < K:
        GROUPS: tl.constexpr = CHUNKS * 16 // ROUND
        most = tl.max(tl.reshape(tl.max(most, 1), (GROUPS, ROUND // 16)), 1)[:, None]
        scale = tl.reshape(tl.broadcast_to(most, (GROUPS, ROUND // 16)), (CHUNKS, 1))
    scale = tl.div_rn(scale, 448.0)
    inverse, pairs = tl.where(scale == 0.0, 0.0, tl.div_rn(1.0, scale)), ()
    for i in tl.static_range(2):
        low, high = entries_of(words[i], KIND, True)
        even, odd = tl.split(tl.reshape(_on_grid(low * inverse, high * inverse), (1, CHUNKS, 2, 2)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        pairs = pairs + (first, second, third, fourth)
    if ROUND < K:
        scale = tl.reshape(scale, (1, CHUNKS))
    return pairs, scale


@kernel
def _on_grid(low, high):
    """Two f32 rounded to e4m3 and made ``LESS``, as a pair of f16."""
    if INTERPRETED:
        low, high = rounded(low, tl.float8e4nv).to(tl.float32), rounded(high, tl.float8e4nv).to(tl.float32)
        return packed(low * LESS, high * LESS, "f16")
    return tl.inline_asm_elementwise(_ROUND, "=r,f,f", [low, high], dtype=tl.int32, is_pure=True, pack=1)


@kernel
def _four(words):
    """Words [BN, 4 n] as four tensors: the first of each four, the second, the third, the fourth."""
    even, odd = tl.split(tl.reshape(words, (words.shape[0], words.shape[1] // 4, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@kernel
def _products(words, pairs):
    """Sums of sixteen products: of the entries in four words each, and the pairs."""
    if INTERPRETED:
        y = tl.zeros(words[0].shape, tl.float32)
        for w in tl.static_range(4):
            y += e4m3_byte(words[w]) * _half(pairs[2 * w]) + e4m3_byte(words[w] >> 8) * _half(
                pairs[2 * w] >> 16
            )
            y += e4m3_byte(words[w] >> 16) * _half(pairs[2 * w + 1])
            y += e4m3_byte(words[w] >> 24) * _half(pairs[2 * w + 1] >> 16)
        return y
    return tl.inline_asm_elementwise(
        _SUM, "=f,r,r,r,r,r,r,r,r,r,r,r,r", list(words + pairs), dtype=tl.float32, is_pure=True, pack=1
    )


@kernel
def _half(words):
    """The f16 in the lower half of words."""
    return words.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
