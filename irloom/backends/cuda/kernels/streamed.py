"""Our own product for some dozens of rows, where reading the weight costs most: boxes of it stream through.

Rows of the weight are the left operand of the tensor cores, whose left side takes 64 at a time; tokens are
the right one, whose side may be as narrow as they are few. Programs share the sum over ``k`` where there are
fewer blocks of weight rows than multiprocessors: each leaves its part in memory, and when all are there each
adds up, in order, and finishes a share of the rows. So no program adds up alone while the others have gone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..quantized import Operand, scales_of, values_of
from ..work import Workspace
from .boxes import box, prefetch_rows, weight_box
from .finish import finished
from .form import Form
from .mode import INTERPRETED, dot, go_on, kernel, options, rounded, tl, triton, varying, wait
from .tiled import scale_strides


@dataclass(frozen=True)
class Stream:
    """``n`` rows of the weight (of each half, where gated) by ``t`` tokens, ``k`` entries at a time.

    ``split`` programs share a sum. So many KiB of a row are on their way ``ahead`` of the tokens.
    """

    n: int
    t: int
    k: int
    split: int = 1
    warps: int = 4
    stages: int = 4
    ahead: int = 1


def streamed_product(
    out: torch.Tensor,
    x: Operand,
    weight: Operand,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    form: Form,
    work: Workspace,
    tile: Stream,
) -> None:
    """``out`` [T, N] as ``form`` says, but for its norm and its rounding, of ``x`` [T, K] and ``weight``
    [N, K], gated [2 N, K]. Both are plain, or of eight bits with scales of whole rows or tensors, and
    ``has_boxes``.
    """
    values, matrix = values_of(x), values_of(weight)
    (t, n), k = out.shape, values.shape[1]
    tiles = int(triton.cdiv(t, tile.t) * triton.cdiv(n, tile.n))
    parts = work.parts(tiles, tile.split, (1 + form.gated) * tile.n * tile.t)
    streamed_kernel[(tiles * tile.split,)](
        out, box(values, tile.t, tile.k), weight_box(matrix, tile.n, tile.k, form.gated), matrix,
        scales_of(x), scales_of(weight), bias, residual, parts, work.counters, t, n, k, out.stride(0),
        matrix.stride(0), 0 if residual is None else residual.stride(0), scale_strides(x)[0],
        scale_strides(weight)[0], float(form.scale), float(form.softcap or 1.0),
        GATED=form.gated, ACT=form.act, CAPPED=form.softcap is not None, SPLIT=tile.split, BN=tile.n,
        BT=tile.t, BK=tile.k, AHEAD=tile.ahead, **options(num_warps=tile.warps, num_stages=tile.stages),
    )  # fmt: skip


@varying("T")
def streamed_kernel(
    out, x, w, matrix, x_scales, w_scales, bias, residual, parts, counters,
    T, N, K, out_row, w_row, residual_row, x_scale_row, w_scale_row, scale, cap,
    GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr, SPLIT: tl.constexpr,
    BN: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, AHEAD: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """``x`` and ``w`` are boxes, ``matrix`` is the weight's memory. Programs of a tile stand side by side, so
    that those that wait for others are never all that run.
    """
    tile, part, token_tiles = tl.program_id(0) // SPLIT, tl.program_id(0) % SPLIT, tl.cdiv(T, BT)
    t0, n0 = (tile % token_tiles) * BT, (tile // token_tiles) * BN
    each = tl.cdiv(tl.cdiv(K, BK), SPLIT) * BK
    first, last = part * each, tl.minimum(part * each + each, K)
    go_on(CHAIN)
    if CHAIN:
        prefetch_rows(matrix, n0, N, K, w_row, first, BN, GATED, AHEAD)
    wait(CHAIN)
    acc = tl.zeros((BN * (2 if GATED else 1), BT), tl.float32)
    for k in tl.range(first, last, BK):
        if GATED:
            acc = dot(w.load([0, n0, k]).reshape(2 * BN, BK), x.load([t0, k]).T, acc)
        else:
            acc = dot(w.load([n0, k]), x.load([t0, k]).T, acc)
    if SPLIT == 1:
        up = acc
        if GATED:
            acc, up = acc.reshape(2, BN, BT).permute(1, 2, 0).split()
        _finish(
            acc, up, out, x_scales, w_scales, bias, residual, n0, t0, T, N, out_row, residual_row,
            x_scale_row, w_scale_row, scale, cap, GATED, ACT, CAPPED,
        )  # fmt: skip
    else:
        SHARE: tl.constexpr = BN // SPLIT
        parts += (tile * SPLIT).to(tl.int64) * acc.numel
        there = _leave(acc, parts, counters + tile, part, SPLIT)
        # the interpreter runs one program after another: the last one finishes all shares
        begin = tl.where(there, 0, SPLIT) if INTERPRETED else part
        for share in tl.range(begin, SPLIT if INTERPRETED else part + 1):
            y, up = _sums(parts, share, GATED, SPLIT, SHARE, BN, BT)
            _finish(
                y, up, out, x_scales, w_scales, bias, residual, n0 + share * SHARE, t0, T, N, out_row,
                residual_row, x_scale_row, w_scale_row, scale, cap, GATED, ACT, CAPPED,
            )  # fmt: skip


@kernel
def _leave(acc, parts, counter, part, SPLIT: tl.constexpr):
    """Leaves a part of a sum in memory; True when all parts are there, and zero in the counter when all
    programs know. The interpreter waits for nobody: False while others are to come.
    """
    at = tl.arange(0, acc.shape[0])[:, None] * acc.shape[1] + tl.arange(0, acc.shape[1])[None, :]
    tl.store(parts + part * acc.numel + at, acc)
    tl.debug_barrier()  # all threads have stored, then one of them counts
    come = tl.atomic_add(counter, 1, sem="release") + 1
    if not INTERPRETED:
        while come < SPLIT:
            come = tl.atomic_add(counter, 0, sem="acquire")
        tl.debug_barrier()
        gone = tl.atomic_add(counter, 1, sem="acq_rel") + 1
        if gone == 2 * SPLIT:
            tl.store(counter, 0)
    elif come == SPLIT:
        tl.store(counter, 0)
    return come >= SPLIT


@kernel
def _sums(
    parts, share, GATED: tl.constexpr, SPLIT: tl.constexpr, SHARE: tl.constexpr, BN: tl.constexpr,
    BT: tl.constexpr,
):  # fmt: skip
    """All parts of a share of the rows, added in order: of the gate, and of what it lets through."""
    SIZE: tl.constexpr = BN * BT * (2 if GATED else 1)
    at = parts + (share * SHARE + tl.arange(0, SHARE))[:, None] * BT + tl.arange(0, BT)[None, :]
    y = tl.load(at, cache_modifier=".cg")
    for p in tl.static_range(1, SPLIT):  # pyright: ignore[reportGeneralTypeIssues]
        y += tl.load(at + p * SIZE, cache_modifier=".cg")
    up = y
    if GATED:
        up = tl.load(at + BN * BT, cache_modifier=".cg")
        for p in tl.static_range(1, SPLIT):  # pyright: ignore[reportGeneralTypeIssues]
            up += tl.load(at + (BN * BT + p * SIZE), cache_modifier=".cg")
    return y, up


@kernel
def _finish(
    acc, up, out, x_scales, w_scales, bias, residual, n0, t0, T, N, out_row, residual_row, x_scale_row,
    w_scale_row, scale, cap, GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Whatever follows the sums of some rows of the weight, and the result."""
    n, t = n0 + tl.arange(0, acc.shape[0]), t0 + tl.arange(0, acc.shape[1])
    acc = _whole(acc, x_scales, w_scales, bias, n, t, N, T, 0, x_scale_row, w_scale_row)
    if GATED:
        up = _whole(up, x_scales, w_scales, bias, n, t, N, T, N, x_scale_row, w_scale_row)
    y = finished(acc, up, scale, cap, GATED, ACT, CAPPED)
    there = (n < N)[:, None] & (t < T)[None, :]
    if residual is not None:
        at = residual + t[None, :].to(tl.int64) * residual_row + n[:, None]
        y += tl.load(at, there, 0.0).to(tl.float32)
    at = out + t[None, :].to(tl.int64) * out_row + n[:, None]
    tl.store(at, rounded(y, out.dtype.element_ty), there)


@kernel
def _whole(acc, x_scales, w_scales, bias, n, t, N, T, first, x_scale_row, w_scale_row):
    """Sums of the weight's rows from ``first`` on, with their scales and bias."""
    if w_scales is not None:
        acc *= tl.load(w_scales + (n + first) * w_scale_row, n < N, 0.0).to(tl.float32)[:, None]
    if x_scales is not None:
        acc *= tl.load(x_scales + t * x_scale_row, t < T, 0.0)[None, :]
    if bias is not None:
        acc += tl.load(bias + first + n, n < N, 0.0).to(tl.float32)[:, None]
    return acc
