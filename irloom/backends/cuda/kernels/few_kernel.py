"""Up to sixteen rows by a weight, on tensor cores whose operands come straight from memory.

An entry of a weight is read once and multiplied with a few rows: what limits is how many bytes are on their
way. So nothing goes through shared memory. The sum over ``k`` may run in any order, as long as weights and
rows agree on it: a thread reads 16 bytes of a row as they lie there, which are what it holds of some operands
of ``mma.m16n8k16``, and the warps of a program, each with a part of ``k``, meet only at the end.

A tensor [8 WARPS, 4] has an entry in each thread, in order: thread ``4 g + t`` of warp ``w`` holds
[8 w + g, t], as that instruction has its operands: row (or token) ``g``, and ``k`` or results by ``t``.
"""

# ruff: noqa: RUF005 (Triton joins tuples, but does not unpack them)
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportOperatorIssue=false
# (tuples of a kernel grow, and its loops are unrolled, before there are types)

from __future__ import annotations

from dataclasses import dataclass

from .curves import activated, tanh
from .mode import INTERPRETED, go_on, kernel, rounded, tl, varying, wait
from .words import e4m3_byte, entries_of, norm_pair, norm_words, packed

_MMA = """
mma.sync.aligned.m16n8k16.row.col.f32.{0}.{0}.f32
{{$0, $1, $2, $3}}, {{$4, $5, $6, $7}}, {{$8, $9}}, {{$10, $11, $12, $13}};
"""
_MMA_BF16, _MMA_F16 = tl.constexpr(_MMA.format("bf16")), tl.constexpr(_MMA.format("f16"))
_HALVES = tl.constexpr("""
{
.reg .b16 low, high;
mov.b32 {low, high}, $2;
cvt.rn.f16x2.e4m3x2 $0, low;
cvt.rn.f16x2.e4m3x2 $1, high;
}
""")


@dataclass(frozen=True)
class Sheaf:
    """A program has ``sets`` of 16 rows of the weight, each of ``warps`` a part of ``k``, and ``depth`` times
    64 bytes of each row in flight for each warp.
    """

    sets: int
    warps: int
    depth: int


@varying("T")
def few_kernel(
    out, x, words, x_scales, scales, bias, residual, norm, T, out_row, x_row, residual_row, x_scale_row,
    x_scale_group, scale_row, scale_group, share, eps, scale, cap,
    N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, PER: tl.constexpr, NORM: tl.constexpr,
    GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr, GROUP: tl.constexpr, TILES: tl.constexpr,
    SETS: tl.constexpr, WARPS: tl.constexpr, DEPTH: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """Rows ``x`` i32[T, K / PER], ``TILES`` of eight, by a weight of words i32[N, K / PER].

    Scales of ``GROUP`` entries, a multiple of those in 64 bytes, are applied to what is summed of 64 bytes,
    those of whole rows (``GROUP`` of 0) at the end; ``share`` rows of the weight have one.
    """
    go_on(CHAIN)
    STEPS: tl.constexpr = (K // PER + 16 * WARPS - 1) // (16 * WARPS)
    weight, rows = (
        (words, scales, scale_row, scale_group, share),
        (x, x_scales, T, x_row, x_scale_row, x_scale_group),
    )
    ring, sums, squares = (), (), ()
    for d in tl.static_range(DEPTH):
        ring = ring + (_weights(weight, d, N, K, PER, GATED, GROUP, SETS, WARPS),)
    for _ in tl.static_range(SETS * TILES * 4):
        sums = sums + (tl.zeros((8 * WARPS, 4), tl.float32),)
    for _ in tl.static_range(TILES):
        squares = squares + (tl.zeros((8 * WARPS, 4), tl.float32),)
    g = _norms(norm, 0, K // PER, WARPS)
    wait(CHAIN)
    tokens = _tokens(rows, 0, K, PER, GROUP, TILES, WARPS)
    for s in range(0, STEPS, DEPTH):
        for d in tl.static_range(DEPTH):
            now, pairs, by = ring[0], (), tokens[TILES:]
            for i in tl.static_range(TILES):
                made, square = _prepared(_four(tokens[i], WARPS), g, norm, KIND, NORM, WARPS)
                pairs, squares = pairs + (made,), squares[1:] + (squares[0] + square,)
            ring = ring[1:] + (_weights(weight, s + d + DEPTH, N, K, PER, GATED, GROUP, SETS, WARPS),)
            tokens = _tokens(rows, s + d + 1, K, PER, GROUP, TILES, WARPS)
            g = _norms(norm, s + d + 1, K // PER, WARPS)
            for j in tl.static_range(SETS):
                low, high = _pairs(_four(now[2 * j], WARPS), KIND), _pairs(_four(now[2 * j + 1], WARPS), KIND)
                for i in tl.static_range(TILES):
                    sums = sums[4:] + _summed(
                        sums, low, high, pairs[i], now, by, j, i, KIND, GROUP, SETS, WARPS
                    )
    for j in tl.static_range(SETS):
        for i in tl.static_range(TILES):
            low, high = _met(
                sums[4 * (j * TILES + i) : 4 * (j * TILES + i) + 4], squares[i], eps, K, NORM, WARPS
            )
            _finish(
                out, low, high, weight, rows, bias, residual, j, i, out_row, residual_row, scale, cap,
                N, GATED, ACT, CAPPED, GROUP, SETS,
            )  # fmt: skip


@kernel
def _weights(
    weight, step, N: tl.constexpr, K: tl.constexpr, PER: tl.constexpr, GATED: tl.constexpr,
    GROUP: tl.constexpr, SETS: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """Of each set two tiles [8 WARPS, 16]: its lower rows (or gates) and its upper ones; then the scales
    [8 WARPS, 1] of each, where groups have some.
    """
    words, scales, scale_row, scale_group, share = weight
    at, tiles, by = _place(step, WARPS), (), ()
    for j in tl.static_range(2 * SETS):
        row = _row(j, _eight(WARPS), N, GATED, SETS)
        here = words + row.to(tl.int64)[:, None] * (K // PER) + at
        there = (at < K // PER) & (row < N)[:, None]
        tiles = tiles + (tl.load(here, there, 0, eviction_policy="evict_first"),)
        if GROUP:
            group = _group(step, PER, GROUP, WARPS)
            here = scales + row // share * scale_row + group * scale_group
            y = tl.load(here, (row < N) & (group * GROUP < K), 0.0).to(tl.float32)
            by = by + (y[:, None],)
    return tiles + by


@kernel
def _group(step, PER: tl.constexpr, GROUP: tl.constexpr, WARPS: tl.constexpr):
    """The group [8 WARPS] of what threads have of a step."""
    return (step * WARPS + tl.arange(0, 8 * WARPS) // 8) * (16 * PER) // GROUP


@kernel
def _row(tile, g, N: tl.constexpr, GATED: tl.constexpr, SETS: tl.constexpr):
    """Rows of the weight, ``g`` of the eight that a tile has; at least ``N`` for those beyond the last."""
    if GATED:
        r = (tl.program_id(0) * SETS + tile // 2) * 8 + g
        return tl.where(r < N // 2, r + tile % 2 * (N // 2), N)
    else:
        return (tl.program_id(0) * SETS * 2 + tile) * 8 + g


@kernel
def _eight(WARPS: tl.constexpr):
    """Which of eight rows or tokens [8 WARPS] threads have."""
    return tl.arange(0, 8 * WARPS) % 8


@kernel
def _place(step, WARPS: tl.constexpr):
    """Words [8 WARPS, 16] of a row that threads have of a step."""
    warp, word = tl.arange(0, 8 * WARPS) // 8, tl.arange(0, 16)
    return (step * WARPS + warp)[:, None] * 16 + word[None, :]


@kernel
def _tokens(
    rows, step, K: tl.constexpr, PER: tl.constexpr, GROUP: tl.constexpr, TILES: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """Tiles [8 WARPS, 16] of eight tokens each; then the scales [8 WARPS, 4] of each one's even tokens and
    of its odd ones, where groups have some.
    """
    x, scales, T, x_row, scale_row, scale_group = rows
    at, tiles, by = _place(step, WARPS), (), ()
    for i in tl.static_range(TILES):
        t = i * 8 + _eight(WARPS)[:, None]
        tiles = tiles + (tl.load(x + t * x_row + at, (at < K // PER) & (t < T), 0),)
        if GROUP:
            group = _group(step, PER, GROUP, WARPS)[:, None]
            for odd in tl.static_range(2):
                t = i * 8 + tl.arange(0, 4)[None, :] * 2 + odd
                there = (t < T) & (group * GROUP < K)
                by = by + (tl.load(scales + t * scale_row + group * scale_group, there, 0.0),)
    return tiles + by


@kernel
def _norms(norm, step, K: tl.constexpr, WARPS: tl.constexpr):
    """Words [8 WARPS, 16] of a norm's weight, as ``norm_words`` has them: the same for eight tokens."""
    g = ()
    if norm is not None:
        at = _place(step, WARPS)
        g = norm_words(norm, at, at < K)
    return g


@kernel
def _fourth(g, i: tl.constexpr, WARPS: tl.constexpr):
    """The ``i``th word, or pair of entries, of a norm's weight that each thread has."""
    if g[0].dtype == tl.int32:
        return (_four(g[0], WARPS)[i],)
    else:
        return _four(g[0], WARPS)[i], _four(g[1], WARPS)[i]


@kernel
def _four(words, WARPS: tl.constexpr):
    """The four words [8 WARPS, 4] that each thread has."""
    even, odd = tl.split(tl.reshape(words, (8 * WARPS, 4, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@kernel
def _prepared(words, g, norm, KIND: tl.constexpr, NORM: tl.constexpr, WARPS: tl.constexpr):
    """A token's pairs, times the norm's weight, and the sum of its squares in a thread."""
    square = tl.zeros((8 * WARPS, 4), tl.float32)
    if NORM:
        made = ()
        for i in tl.static_range(4):
            low, high = entries_of(words[i], KIND, True)
            square += low * low + high * high
            if norm is None:
                made = made + (words[i],)
            else:
                by_low, by_high = norm_pair(_fourth(g, i, WARPS), KIND)
                made = made + (packed(low * by_low, high * by_high, KIND),)
        return made, square
    else:
        return _pairs(words, KIND), square


@kernel
def _pairs(words, KIND: tl.constexpr):
    """Pairs of entries of 16 bits, in order: of four bf16 or f16 words themselves, of e4m3 two in each."""
    if KIND != "f8e4m3":
        return words
    else:
        pairs = ()
        for i in tl.static_range(4):
            if INTERPRETED:
                a, b, c, d = (
                    e4m3_byte(words[i]),
                    e4m3_byte(words[i] >> 8),
                    e4m3_byte(words[i] >> 16),
                    e4m3_byte(words[i] >> 24),
                )
                pairs = pairs + (packed(a, b, "f16"), packed(c, d, "f16"))
            else:
                pairs = pairs + tl.inline_asm_elementwise(
                    _HALVES, "=r,=r,r", [words[i]], dtype=(tl.int32, tl.int32), is_pure=True, pack=1
                )
        return pairs


@kernel
def _summed(
    sums, low, high, row, now, by, j, i, KIND: tl.constexpr, GROUP: tl.constexpr, SETS: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """The first four of ``sums`` with products of set ``j``, rows ``low`` and ``high``, and tokens of tile
    ``i``, times the scales of their group: those behind the tiles in ``now``, and ``by``.
    """
    c = sums[:4]
    if GROUP:
        nothing = tl.zeros((8 * WARPS, 4), tl.float32)
        c = (nothing, nothing, nothing, nothing)
    for p in tl.static_range(len(low) // 2):
        a, b = low[2 * p : 2 * p + 2], high[2 * p : 2 * p + 2]
        c = _mma(c, a[0], b[0], a[1], b[1], row[2 * p], row[2 * p + 1], KIND)
    if GROUP:
        lower, upper, even, odd = now[2 * (SETS + j)], now[2 * (SETS + j) + 1], by[2 * i], by[2 * i + 1]
        c = (
            sums[0] + c[0] * (lower * even), sums[1] + c[1] * (lower * odd),
            sums[2] + c[2] * (upper * even), sums[3] + c[3] * (upper * odd),
        )  # fmt: skip
    return c


@kernel
def _mma(c, a, b, d, e, x, y, KIND: tl.constexpr):
    """``c`` and the products of pairs ``a`` (and ``d``) of lower rows, ``b`` (``e``) of upper ones with
    tokens' pairs ``x`` (``y``): results [g, 2 t], [g, 2 t + 1] of lower rows, then of upper ones.
    """
    if INTERPRETED:
        kind: tl.constexpr = "f16" if KIND == "f8e4m3" else KIND
        low_even, low_odd = _meet(a, d, x, y, kind)
        high_even, high_odd = _meet(b, e, x, y, kind)
        return c[0] + low_even, c[1] + low_odd, c[2] + high_even, c[3] + high_odd
    else:
        FOUR: tl.constexpr = (tl.float32, tl.float32, tl.float32, tl.float32)
        asm: tl.constexpr = _MMA_BF16 if KIND == "bf16" else _MMA_F16
        return tl.inline_asm_elementwise(
            asm, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", [a, b, d, e, x, y, c[0], c[1], c[2], c[3]], dtype=FOUR,
            is_pure=True, pack=1,
        )  # fmt: skip


@kernel
def _meet(a, b, x, y, KIND: tl.constexpr):
    """What the instruction makes of eight rows and eight tokens: results of even tokens, and of odd ones."""
    LINES: tl.constexpr = a.shape[0]
    made = tl.zeros((LINES // 8, 8, 8), tl.float32)
    for i in tl.static_range(2):
        w, h = entries_of(b if i else a, KIND, True), entries_of(y if i else x, KIND, True)
        for e in tl.static_range(2):
            rows, tokens = tl.reshape(w[e], (LINES // 8, 8, 1, 4)), tl.reshape(h[e], (LINES // 8, 1, 8, 4))
            made += tl.sum(rows * tokens, 3)
    return tl.split(tl.reshape(made, (LINES, 4, 2)))


@kernel
def _met(c, squares, eps, K: tl.constexpr, NORM: tl.constexpr, WARPS: tl.constexpr):
    """Sums [8, 8] of all warps: of lower rows with eight tokens, and of upper ones."""
    y = tl.join(tl.join(c[0], c[1]), tl.join(c[2], c[3]))
    low, high = tl.split(tl.sum(tl.reshape(y, (WARPS, 8, 4, 2, 2)), 0))
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(tl.reshape(tl.sum(squares, 1), (WARPS, 8)), 0) / K + eps)[None, :]
    return tl.reshape(low, (8, 8)) * factor, tl.reshape(high, (8, 8)) * factor


@kernel
def _finish(
    out, low, high, weight, rows, bias, residual, j, i, out_row, residual_row, scale, cap, N: tl.constexpr,
    GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr, GROUP: tl.constexpr, SETS: tl.constexpr,
):  # fmt: skip
    """Store what becomes of the sums [8, 8] of a set's lower rows and upper ones with eight tokens."""
    g = tl.arange(0, 8)
    t, row, upper = i * 8 + g, _row(2 * j, g, N, GATED, SETS), _row(2 * j + 1, g, N, GATED, SETS)
    low = _scaled(low, weight, rows, bias, row, t, N, GROUP)
    high = _scaled(high, weight, rows, bias, upper, t, N, GROUP)
    if GATED:
        y = activated(low, ACT) * high
        _store(out, y, residual, row, t, rows[2], out_row, residual_row, scale, cap, N // 2, None, CAPPED)
    else:
        _store(out, low, residual, row, t, rows[2], out_row, residual_row, scale, cap, N, ACT, CAPPED)
        _store(out, high, residual, upper, t, rows[2], out_row, residual_row, scale, cap, N, ACT, CAPPED)


@kernel
def _scaled(y, weight, rows, bias, row, t, N: tl.constexpr, GROUP: tl.constexpr):
    """Sums with the scales of whole rows, and the bias."""
    scales, scale_row, share, x_scales, T, x_scale_row = (
        weight[1],
        weight[2],
        weight[4],
        rows[1],
        rows[2],
        rows[4],
    )
    if scales is not None and GROUP == 0:
        y *= tl.load(scales + row // share * scale_row, row < N, 0.0).to(tl.float32)[:, None]
    if x_scales is not None and GROUP == 0:
        y *= tl.load(x_scales + t * x_scale_row, t < T, 0.0)[None, :]
    if bias is not None:
        y += tl.load(bias + row, row < N, 0.0).to(tl.float32)[:, None]
    return y


@kernel
def _store(
    out, y, residual, column, t, T, out_row, residual_row, scale, cap, N: tl.constexpr, ACT: tl.constexpr,
    CAPPED: tl.constexpr,
):  # fmt: skip
    if ACT is not None:
        y = activated(y, ACT)
    y *= scale
    if CAPPED:
        y = cap * tanh(y / cap)
    there = (column < N)[:, None] & (t < T)[None, :]
    if residual is not None:
        y += tl.load(residual + t[None, :] * residual_row + column[:, None], there, 0.0).to(tl.float32)
    tl.store(out + t[None, :] * out_row + column[:, None], rounded(y, out.dtype.element_ty), there)
