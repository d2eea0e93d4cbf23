"""Our own product for many rows: persistent programs that the copy engine feeds, with the gate in registers.

Tokens are the left operand of the tensor cores and rows of the weight the right one. A gated program has the
rows of both halves of the weight in one operand, so that one instruction multiplies by 256 of them; what a
library leaves in memory for another kernel, gate and up, meets in a thread. Programs take tiles one after
another: the next one's first boxes are on their way while the last one is finished.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..quantized import Operand, scales_of, values_of
from .boxes import box, prefetch_rows, weight_box
from .finish import finished
from .form import Form
from .mode import dot, go_on, kernel, options, rounded, tl, triton, varying, wait
from .tiled import scale_strides
from .tiles import row_stride

HALF = tl.constexpr(128)
"""Columns that are finished at a time: shared memory holds them beside the next tile's boxes."""


@dataclass(frozen=True)
class Wide:
    """``t`` tokens by ``n`` rows of the weight (of each half, where gated), ``k`` entries at a time.

    Tiles of ``group`` times ``t`` tokens go by the same rows of the weight before the next rows follow.
    So many KiB of a row of the first tile are on their way ``ahead`` of the tokens.
    """

    t: int
    n: int
    k: int
    warps: int = 8
    stages: int = 4
    group: int = 16
    ahead: int = 1


def wide_product(
    out: torch.Tensor,
    x: Operand,
    weight: Operand,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    form: Form,
    tile: Wide,
    programs: int,
) -> None:
    """``out`` [T, N] as ``form`` says, but for its norm and its rounding, of ``x`` [T, K] and ``weight``
    [N, K], gated [2 N, K], by so many ``programs``. Both are plain, or of eight bits with scales of whole
    rows or tensors. All ``has_boxes``.
    """
    values, matrix = values_of(x), values_of(weight)
    (t, n), k = out.shape, values.shape[1]
    tiles = triton.cdiv(t, tile.t) * triton.cdiv(n, tile.n)
    wide_kernel[(min(tiles, programs),)](
        box(out, tile.t, min(tile.n, HALF.value)), box(values, tile.t, tile.k),
        weight_box(matrix, tile.n, tile.k, form.gated), matrix, scales_of(x), scales_of(weight), bias,
        residual, t, n, k, matrix.stride(0), row_stride(residual), scale_strides(x)[0],
        scale_strides(weight)[0], *form.numbers,
        **form.constants, FLAT=bool(tiles > programs), BT=tile.t, BN=tile.n, BK=tile.k, GROUP=tile.group,
        AHEAD=tile.ahead, **options(num_warps=tile.warps, num_stages=tile.stages),
    )  # fmt: skip


@varying("T")
def wide_kernel(
    out, x, w, matrix, x_scales, w_scales, bias, residual,
    T, N, K, w_row, residual_row, x_scale_row, w_scale_row, scale, cap,
    GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr, FLAT: tl.constexpr,
    BT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, AHEAD: tl.constexpr,
    CHAIN: tl.constexpr,
):  # fmt: skip
    """``out``, ``x`` and ``w`` are boxes, ``matrix`` is the weight's memory. ``FLAT``: more tiles than
    programs, whose loops become one.
    """
    token_tiles, row_tiles = tl.cdiv(T, BT), tl.cdiv(N, BN)
    go_on(CHAIN)
    if CHAIN:
        prefetch_rows(matrix, (tl.program_id(0) // token_tiles) * BN, N, K, w_row, 0, BN, GATED, AHEAD)
    wait(CHAIN)
    for tile in tl.range(tl.program_id(0), token_tiles * row_tiles, tl.num_programs(0), flatten=FLAT):
        first = tile // (GROUP * row_tiles) * GROUP
        width = tl.minimum(token_tiles - first, GROUP)
        within = tile % (GROUP * row_tiles)
        t0, n0 = (first + within % width) * BT, (within // width) * BN
        acc = tl.zeros((BT, BN * (2 if GATED else 1)), tl.float32)
        for k in tl.range(0, K, BK):
            if GATED:
                acc = dot(x.load([t0, k]), w.load([0, n0, k]).reshape(2 * BN, BK).T, acc)
            else:
                acc = dot(x.load([t0, k]), w.load([n0, k]).T, acc)
        if GATED or BN > HALF:  # a half's columns at a time, of the gate and what it lets through
            left, right = acc.reshape(BT, 2, acc.shape[1] // 2).permute(0, 2, 1).split()
        else:
            left, right = acc, acc
        _finish(
            left, right, out, x_scales, w_scales, bias, residual, t0, n0, T, N, residual_row, x_scale_row,
            w_scale_row, scale, cap, GATED, ACT, CAPPED,
        )  # fmt: skip
        if BN > HALF:
            _finish(
                right, right, out, x_scales, w_scales, bias, residual, t0, n0 + BN // 2, T, N, residual_row,
                x_scale_row, w_scale_row, scale, cap, GATED, ACT, CAPPED,
            )  # fmt: skip


@kernel
def _finish(
    acc, up, out, x_scales, w_scales, bias, residual, t0, n0, T, N, residual_row, x_scale_row, w_scale_row,
    scale, cap, GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Whatever follows the sums of some columns, and the result."""
    t, n = t0 + tl.arange(0, acc.shape[0]), n0 + tl.arange(0, acc.shape[1])
    acc = _whole(acc, x_scales, w_scales, bias, t, n, N, T, 0, x_scale_row, w_scale_row)
    if GATED:
        up = _whole(up, x_scales, w_scales, bias, t, n, N, T, N, x_scale_row, w_scale_row)
    y = finished(acc, up, scale, cap, GATED, ACT, CAPPED)
    if residual is not None:
        at = residual + t[:, None].to(tl.int64) * residual_row + n[None, :]
        y += tl.load(at, (t < T)[:, None] & (n < N)[None, :], 0.0).to(tl.float32)
    out.store([t0, n0], rounded(y, out.dtype))


@kernel
def _whole(acc, x_scales, w_scales, bias, t, n, N, T, first, x_scale_row, w_scale_row):
    """Sums of the weight's rows from ``first`` on, with their scales and bias."""
    if w_scales is not None:
        acc *= tl.load(w_scales + (n + first) * w_scale_row, n < N, 0.0).to(tl.float32)[None, :]
    if x_scales is not None:
        acc *= tl.load(x_scales + t * x_scale_row, t < T, 0.0)[:, None]
    if bias is not None:
        acc += tl.load(bias + first + n, n < N, 0.0).to(tl.float32)[None, :]
    return acc
