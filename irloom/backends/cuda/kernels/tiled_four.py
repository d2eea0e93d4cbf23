"""Products of some dozens of rows by four-bit weights, which become floats on their way to the tensor cores.

They do so in registers, as the left operand.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..fragments import STRIP, blocks_of
from ..quantized import Quantized
from ..work import Workspace
from .few_four import kinds, words
from .finish import finished
from .form import Form
from .mode import dot, go_on, kernel, options, rounded, tl, triton, varying, wait
from .nibbles import cut_scaled, matrix, one_of, strip_of
from .tiled import _is_last, _sums
from .tiles import row_stride


@dataclass(frozen=True)
class FourTile:
    """What a program computes: ``strips`` of 16 rows of the weight by ``t`` tokens, ``k`` entries of four
    spans at a time; ``split`` programs share a sum.
    """

    strips: int
    t: int
    k: int
    split: int = 1
    warps: int = 4
    stages: int = 4


def tiled_four_product(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: Quantized,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    form: Form,
    work: Workspace,
    tile: FourTile,
) -> None:
    """``out`` [T, N] as ``form`` says, but for its norm and its rounding, of ``x`` [T, K] and a weight [N, K]
    in fragments, gated [2 N, K]. Entries of the weight are rounded to ``x``'s element.
    """
    (t, k), strips, span = x.shape, weight.values.shape[0], weight.values.shape[2] * 16
    tiles = triton.cdiv(strips, tile.strips) * triton.cdiv(t, tile.t)
    parts = work.parts(int(tiles), tile.split, tile.strips * STRIP * tile.t)
    tiled_four_kernel[(tiles * tile.split,)](
        out, x, *words(weight), bias, residual, parts, work.counters, t, out.stride(0), x.stride(0),
        row_stride(residual), tile.split, *form.numbers,
        N=strips * STRIP, BLOCKS=blocks_of(k, span), K=k, SPAN=span, **kinds(weight), **form.constants,
        SPLIT=tile.split > 1, STRIPS=tile.strips, BT=tile.t, BK=min(tile.k, span),
        **options(num_warps=tile.warps, num_stages=tile.stages),
    )  # fmt: skip


@varying("T")
def tiled_four_kernel(
    out, x, pairs, scales, zeros, bias, residual, parts, counters, T, out_row, x_row, residual_row, split,
    scale, cap,
    N: tl.constexpr, BLOCKS: tl.constexpr, K: tl.constexpr, SPAN: tl.constexpr, SIGNED: tl.constexpr,
    SCALE: tl.constexpr, ZERO: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr,
    SPLIT: tl.constexpr, STRIPS: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """Strips and tokens beyond the last are the last one again, and not stored. Tiles of one part of the
    weight run side by side.
    """
    tile, share, token_tiles = tl.program_id(0) // split, tl.program_id(0) % split, tl.cdiv(T, BT)
    part, t0 = tile // token_tiles, (tile % token_tiles) * BT
    M: tl.constexpr = STRIPS * 16
    STEPS: tl.constexpr = SPAN // BK
    chunk = tl.cdiv(BLOCKS, split) * STEPS
    first, last = share * chunk, tl.minimum(share * chunk + chunk, BLOCKS * STEPS)
    strip = tl.minimum(strip_of(part, tl.arange(0, STRIPS), N, STRIPS, GATED), N // 16 - 1)
    at = pairs + (strip.to(tl.int64) * (BLOCKS * SPAN * 32))[:, None, None]
    at = at + (tl.arange(0, BK // 32) * 512)[None, :, None] + tl.arange(0, 512)[None, None, :]
    # the scale of the row that each byte is of: strip, fragment, row, column, half of k, half of rows, rest
    row = tl.arange(0, 8)[None, None, :, None, None, None, None]
    row = row + 8 * tl.arange(0, 2)[None, None, None, None, None, :, None]
    beside = (strip[:, None, None, None, None, None, None] * 16 + row) * BLOCKS
    t = tl.minimum(t0 + tl.arange(0, BT), T - 1)
    x_at = x + t[:, None].to(tl.int64) * x_row
    go_on(CHAIN)
    wait(CHAIN)
    acc = tl.zeros((M, BT), tl.float32)
    for i in tl.range(first, last):
        b, s = i // STEPS, i % STEPS
        now = at + (b * (SPAN * 32) + s * (BK * 16))
        both = _by_row(tl.load(now), STRIPS, BK), _by_row(tl.load(now + SPAN * 16), STRIPS, BK)
        bys, minus = tl.load(scales + beside + b), None
        if zeros is not None:
            minus = tl.load(zeros + beside + b)
        for j in tl.static_range(4):
            k = (b * (4 * SPAN) + j * SPAN + s * BK + tl.arange(0, BK))[None, :]
            xv = tl.load(x_at + k) if K % (4 * SPAN) == 0 else tl.load(x_at + k, k < K, 0.0)
            zero = None
            if zeros is not None:
                zero = rounded(one_of(minus, j, ZERO), x.dtype.element_ty)
            by = rounded(one_of(bys, j, SCALE), x.dtype.element_ty)
            a = cut_scaled(both[j // 2], by, zero, j % 2, SIGNED, x.dtype.element_ty)
            acc = dot(matrix(a, M, BK), tl.trans(xv), acc)
    if SPLIT:
        if _is_last(acc, acc, parts, counters, tile, share, split, False):
            acc, _ = _sums(parts, tile, split, False, M, BT)
            _finish(
                acc, out, bias, residual, part, t0, T, out_row, residual_row, scale, cap,
                N // 2 if GATED else N, GATED, ACT, CAPPED,
            )  # fmt: skip
    else:
        _finish(
            acc, out, bias, residual, part, t0, T, out_row, residual_row, scale, cap,
            N // 2 if GATED else N, GATED, ACT, CAPPED,
        )  # fmt: skip


@kernel
def _by_row(pairs, STRIPS: tl.constexpr, BK: tl.constexpr):
    """Bytes of fragments: strip, fragment, row, column, half of k, half of rows, rest."""
    return tl.reshape(pairs, (STRIPS, BK // 32, 8, 4, 2, 2, 4))


@kernel
def _finish(
    acc, out, bias, residual, part, t0, T, out_row, residual_row, scale, cap,
    N: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Whatever follows the sums, and the result."""
    BT: tl.constexpr = acc.shape[1]
    WIDE: tl.constexpr = acc.shape[0] // 32 if GATED else acc.shape[0] // 16
    up = acc
    if GATED:
        y = tl.permute(tl.reshape(acc, (WIDE, 2, 16, BT)), (0, 2, 3, 1))
        acc, up = tl.split(tl.reshape(y, (WIDE * 16, BT, 2)))
    n, t = part * (WIDE * 16) + tl.arange(0, WIDE * 16), t0 + tl.arange(0, BT)
    if bias is not None:
        acc += tl.load(bias + n, n < N, 0.0).to(tl.float32)[:, None]
        if GATED:
            up += tl.load(bias + N + n, n < N, 0.0).to(tl.float32)[:, None]
    y = finished(acc, up, scale, cap, GATED, ACT, CAPPED)
    there, t = (n < N)[:, None] & (t < T)[None, :], t.to(tl.int64)[None, :]
    if residual is not None:
        y += tl.load(residual + t * residual_row + n[:, None], there, 0.0).to(tl.float32)
    tl.store(out + t * out_row + n[:, None], rounded(y, out.dtype.element_ty), there)
