"""Our own product for more rows than a few: weights of any kind, scales and all that follows in one kernel.

With some dozens of rows, reading the weight costs most. So the weight is the left operand of the tensor
cores, whose left side takes 64 rows at a time, and may come from registers; tokens are the right one, whose
side may be as narrow as they are few. Programs share the sum over ``k`` where there are fewer blocks of
weight rows than multiprocessors: each leaves its part in memory, and whoever comes last adds all parts in
order, so that a sum is the same every time, and finishes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..quantized import Operand, Quantized, scales_of, values_of
from ..work import Workspace
from .finish import finished
from .form import Form
from .mode import INTERPRETED, dot, go_on, kernel, options, rounded, tl, triton, wait
from .tiles import row_stride

UNSIGNED, SIGNED = tl.constexpr(1), tl.constexpr(2)


@dataclass(frozen=True)
class Tile:
    """What a program computes: ``n`` rows of the weight (of each half, where gated) by ``t`` tokens, ``k``
    entries at a time; ``split`` programs share a sum.
    """

    n: int
    t: int
    k: int
    split: int = 1
    warps: int = 4
    stages: int = 4


def tiled_product(
    out: torch.Tensor,
    x: Operand,
    weight: Operand,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    form: Form,
    work: Workspace,
    tile: Tile,
) -> None:
    """``out`` [T, N] as ``form`` says, but for its norm and its rounding, of ``x`` [T, K] and ``weight``
    [N, K], gated [2 N, K]. ``x`` is plain, or of eight bits as the weight then is; the weight may be
    quantized where ``x`` is not.
    """
    values, matrix = values_of(x), values_of(weight)
    (t, n), k = out.shape, values.shape[1]
    group = max(_group(x, k), _group(weight, k))
    assert not group or group % tile.k == 0, f"{tile} has parts of two groups of {group}"
    tiles = triton.cdiv(n, tile.n) * triton.cdiv(t, tile.t)
    parts = work.parts(int(tiles), tile.split, (1 + form.gated) * tile.n * tile.t)
    zeros = weight.zeros if isinstance(weight, Quantized) else None
    tiled_kernel[(tiles * tile.split,)](
        out, values, scales_of(x), matrix, scales_of(weight), zeros, bias, residual, parts, work.counters,
        t, n, k, out.stride(0), values.stride(0), matrix.stride(0),
        row_stride(residual), *scale_strides(x), *scale_strides(weight), scale_rows(weight), tile.split,
        *form.numbers,
        GROUP=group, FOUR=four_bits(weight), **form.constants, SPLIT=tile.split > 1, EVEN=k % tile.k == 0,
        BN=tile.n, BT=tile.t, BK=tile.k, **options(num_warps=tile.warps, num_stages=tile.stages),
    )  # fmt: skip


@kernel
def tiled_kernel(
    out, x, x_scales, w, w_scales, w_zeros, bias, residual, parts, counters,
    T, N, K, out_row, x_row, w_row, residual_row, x_scale_row, x_scale_group, w_scale_row, w_scale_group,
    rows, split, scale, cap,
    GROUP: tl.constexpr, FOUR: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr,
    SPLIT: tl.constexpr, EVEN: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    CHAIN: tl.constexpr,
):  # fmt: skip
    """Scales of a group of ``GROUP`` entries are applied when a step's part of it is summed, others
    (``GROUP`` of 0) at the end; ``rows`` of the weight share one. Rows and tokens beyond the last are the
    last one again, and not stored. Tiles of one block of weight rows run side by side.
    """
    tile, part, token_tiles = tl.program_id(0) // split, tl.program_id(0) % split, tl.cdiv(T, BT)
    t0, n0 = (tile % token_tiles) * BT, (tile // token_tiles) * BN
    n, t = tl.minimum(n0 + tl.arange(0, BN), N - 1), tl.minimum(t0 + tl.arange(0, BT), T - 1)
    chunk = tl.cdiv(tl.cdiv(K, BK), split) * BK
    first, last = part * chunk, tl.minimum(part * chunk + chunk, K)
    gate, up = w + n[:, None].to(tl.int64) * w_row, w + (n + N)[:, None].to(tl.int64) * w_row
    gate_scales, up_scales = (n // rows) * w_scale_row, ((n + N) // rows) * w_scale_row
    x_at = x + t[:, None].to(tl.int64) * x_row
    go_on(CHAIN)
    if CHAIN:
        _prefetch(gate, first, K, FOUR)
        if GATED:
            _prefetch(up, first, K, FOUR)
    wait(CHAIN)
    acc, acc_up = tl.zeros((BN, BT), tl.float32), tl.zeros((BN, BT), tl.float32)
    for k in tl.range(first, last, BK):
        at = (k + tl.arange(0, BK))[None, :]
        xv = tl.load(x_at + at) if EVEN else tl.load(x_at + at, at < K, 0.0)
        xv = tl.trans(xv)
        xs = 1.0
        if GROUP and x_scales is not None:
            xs = tl.load(x_scales + t * x_scale_row + (k // GROUP) * x_scale_group)[None, :]
        g = (k // GROUP) * w_scale_group if GROUP else 0
        acc = _added(acc, gate, w_scales, w_zeros, gate_scales + g, k, K, xv, xs, GROUP, FOUR, EVEN, BK)
        if GATED:
            acc_up = _added(acc_up, up, w_scales, w_zeros, up_scales + g, k, K, xv, xs, GROUP, FOUR, EVEN, BK)
    if SPLIT:
        if _is_last(acc, acc_up, parts, counters, tile, part, split, GATED):
            acc, acc_up = _sums(parts, tile, split, GATED, BN, BT)
            _finish(
                acc, acc_up, out, x_scales, w_scales, bias, residual, n0, t0, T, N, out_row, residual_row,
                x_scale_row, w_scale_row, rows, scale, cap, GROUP, GATED, ACT, CAPPED,
            )  # fmt: skip
    else:
        _finish(
            acc, acc_up, out, x_scales, w_scales, bias, residual, n0, t0, T, N, out_row, residual_row,
            x_scale_row, w_scale_row, rows, scale, cap, GROUP, GATED, ACT, CAPPED,
        )  # fmt: skip


@kernel
def _added(
    acc, w, scales, zeros, scale_at, k, K, x, xs,
    GROUP: tl.constexpr, FOUR: tl.constexpr, EVEN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``acc`` with the product of ``BK`` entries of the weight's rows, from ``k`` on, and those of ``x``."""
    if FOUR:
        at = (k // 2 + tl.arange(0, BK // 2))[None, :]
        pairs = tl.load(w + at) if EVEN else tl.load(w + at, at * 2 < K, 0)
        wv = tl.join(pairs & 15, pairs >> 4).reshape(acc.shape[0], BK)
        if FOUR == SIGNED:
            wv = (wv ^ 8).to(tl.int8) - 8
    else:
        at = (k + tl.arange(0, BK))[None, :]
        wv = tl.load(w + at) if EVEN else tl.load(w + at, at < K, 0.0)
    if zeros is not None:
        wv = wv.to(tl.float32) - tl.load(zeros + scale_at).to(tl.float32)[:, None]
    if wv.dtype != x.dtype:
        wv = wv.to(tl.float32 if INTERPRETED else x.dtype)  # exact; the interpreter makes no bf16 of integers
    if GROUP:
        part = dot(wv, x, tl.zeros(acc.shape, tl.float32))
        return acc + part * (tl.load(scales + scale_at).to(tl.float32)[:, None] * xs)
    return dot(wv, x, acc)


@kernel
def _is_last(acc, acc_up, parts, counters, tile, part, split, GATED: tl.constexpr):
    """Leaves this program's part of a sum in memory; whether all others have left theirs."""
    at = _part(parts, tile * split + part, GATED, acc.shape[0], acc.shape[1])
    tl.store(at, acc)
    if GATED:
        tl.store(at + acc.numel, acc_up)
    tl.debug_barrier()  # all threads have stored, then one of them counts
    last = tl.atomic_add(counters + tile, 1, sem="acq_rel") == split - 1
    if last:
        tl.store(counters + tile, 0)
    return last


@kernel
def _sums(parts, tile, split, GATED: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr):
    """All parts, added in order."""
    acc, acc_up = tl.zeros((BN, BT), tl.float32), tl.zeros((BN, BT), tl.float32)
    for p in tl.range(split):
        at = _part(parts, tile * split + p, GATED, BN, BT)
        acc += tl.load(at, cache_modifier=".cg")
        if GATED:
            acc_up += tl.load(at + BN * BT, cache_modifier=".cg")
    return acc, acc_up


@kernel
def _part(parts, index, GATED: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr):
    entries = tl.arange(0, BN)[:, None] * BT + tl.arange(0, BT)[None, :]
    return parts + index.to(tl.int64) * (BN * BT * (2 if GATED else 1)) + entries


@kernel
def _finish(
    acc, acc_up, out, x_scales, w_scales, bias, residual, n0, t0, T, N, out_row, residual_row, x_scale_row,
    w_scale_row, rows, scale, cap,
    GROUP: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Whatever follows the sums, and the result."""
    n, t = n0 + tl.arange(0, acc.shape[0]), t0 + tl.arange(0, acc.shape[1])
    acc = _whole(acc, x_scales, w_scales, bias, n, t, N, T, 0, x_scale_row, w_scale_row, rows, GROUP)
    if GATED:
        acc_up = _whole(
            acc_up, x_scales, w_scales, bias, n, t, N, T, N, x_scale_row, w_scale_row, rows, GROUP
        )  # fmt: skip
    y = finished(acc, acc_up, scale, cap, GATED, ACT, CAPPED)
    there = (n < N)[:, None] & (t < T)[None, :]
    if residual is not None:
        at = residual + t[None, :].to(tl.int64) * residual_row + n[:, None]
        y += tl.load(at, there, 0.0).to(tl.float32)
    at = out + t[None, :].to(tl.int64) * out_row + n[:, None]
    tl.store(at, rounded(y, out.dtype.element_ty), there)


@kernel
def _whole(
    acc, x_scales, w_scales, bias, n, t, N, T, first, x_scale_row, w_scale_row, rows, GROUP: tl.constexpr
):
    """Sums of the weight's rows from ``first`` on, with the scales of whole rows, and the bias."""
    if GROUP == 0 and w_scales is not None:
        at = w_scales + ((n + first) // rows) * w_scale_row
        acc *= tl.load(at, n < N, 0.0).to(tl.float32)[:, None]
    if GROUP == 0 and x_scales is not None:
        acc *= tl.load(x_scales + t * x_scale_row, t < T, 0.0)[None, :]
    if bias is not None:
        acc += tl.load(bias + first + n, n < N, 0.0).to(tl.float32)[:, None]
    return acc


@kernel
def _prefetch(rows, k, K, FOUR: tl.constexpr):
    """Brings the next KiB of these rows, from entry ``k`` on, to the L2 cache, and waits for nothing."""
    if not INTERPRETED:
        size: tl.constexpr = rows.dtype.element_ty.primitive_bitwidth // 8
        if FOUR:
            k, K = k // 2, K // 2
        at = rows + tl.minimum(k + tl.arange(0, 8) * (128 // size), K - 1)[None, :]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at.to(tl.int64)], tl.int32, False, 1
        )


def _group(x: Operand, k: int) -> int:
    """Entries of a row that share a scale, 0 where all do."""
    return k // x.scales.shape[1] if isinstance(x, Quantized) and x.scales.shape[1] > 1 else 0


def four_bits(x: Operand) -> int:
    """Whether two entries share a byte: 0 for no, ``UNSIGNED``, ``SIGNED``."""
    if not isinstance(x, Quantized) or x.quant.base.bits != 4:
        return 0
    return int(SIGNED if x.quant.base.kind == "int" else UNSIGNED)


def scale_strides(x: Operand) -> tuple[int, int]:
    """From one row's scale to the next one's, and from one group's: 0 where there is one."""
    if not isinstance(x, Quantized):
        return 0, 0
    row, group = x.scales.stride()
    return row if x.scales.shape[0] > 1 else 0, group if x.scales.shape[1] > 1 else 0


def scale_rows(x: Operand) -> int:
    """Rows that share a scale; 1 where all do."""
    return max(1, x.quant.rows) if isinstance(x, Quantized) and len(x.scales) > 1 else 1
