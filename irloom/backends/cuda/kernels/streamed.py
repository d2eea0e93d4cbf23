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
from .boxes import box, weight_box
from .finish import brought_by_rows, brought_by_tokens, ended
from .form import Form
from .mode import INTERPRETED, dot, go_on, kernel, options, rounded, tl, triton, varying, wait
from .tiled import scale_strides
from .tiles import row_stride


@dataclass(frozen=True)
class Stream:
    """``n`` rows of the weight (of each half, where gated) by ``t`` tokens, ``k`` entries at a time.

    ``split`` programs share a sum.
    """

    n: int
    t: int
    k: int
    split: int = 1
    warps: int = 4
    stages: int = 4


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
        out, box(values, tile.t, tile.k), weight_box(matrix, tile.n, tile.k, form.gated),
        scales_of(x), scales_of(weight), bias, residual, parts, work.counters, t, n, k, out.stride(0),
        row_stride(residual), scale_strides(x)[0], scale_strides(weight)[0], *form.numbers,
        **form.constants, SPLIT=tile.split, BN=tile.n, BT=tile.t, BK=tile.k,
        **options(num_warps=tile.warps, num_stages=tile.stages),
    )  # fmt: skip


@varying("T")
def streamed_kernel(
    out, x, w, x_scales, w_scales, bias, residual, parts, counters,
    T, N, K, out_row, residual_row, x_scale_row, w_scale_row, scale, cap,
    GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr, SPLIT: tl.constexpr,
    BN: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """``x`` and ``w`` are boxes. Programs of a tile stand side by side, so that those that wait for others
    are never all that run.

    What the end needs besides the sums is asked for at the start: nothing waits for it behind them.
    """
    SHARE: tl.constexpr = BN // SPLIT
    tile, part, token_tiles = tl.program_id(0) // SPLIT, tl.program_id(0) % SPLIT, tl.cdiv(T, BT)
    t0, n0 = (tile % token_tiles) * BT, (tile // token_tiles) * BN
    each = tl.cdiv(tl.cdiv(K, BK), SPLIT) * BK
    first, last = part * each, tl.minimum(part * each + each, K)
    t, n = t0 + tl.arange(0, BT), n0 + part * SHARE + tl.arange(0, SHARE)
    go_on(CHAIN)
    of_rows = brought_by_rows(w_scales, bias, n, N, w_scale_row, GATED)
    wait(CHAIN)
    of_tokens = brought_by_tokens(x_scales, residual, n, t, N, T, x_scale_row, residual_row)
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
        _finish(acc, up, out, of_rows, of_tokens, n, t, N, T, out_row, scale, cap, GATED, ACT, CAPPED)
    else:
        parts += (tile * SPLIT).to(tl.int64) * acc.numel
        come = _leave(acc, parts, counters + tile, part, SPLIT)
        if not INTERPRETED:
            y, up = _sums(parts, part, GATED, SPLIT, SHARE, BN, BT)
            _finish(y, up, out, of_rows, of_tokens, n, t, N, T, out_row, scale, cap, GATED, ACT, CAPPED)
            leave_zero(counters + tile, SPLIT)
        elif come == SPLIT:  # the interpreter runs one program after another: the last finishes all shares
            for share in tl.range(SPLIT):
                n = n0 + share * SHARE + tl.arange(0, SHARE)
                of_rows = brought_by_rows(w_scales, bias, n, N, w_scale_row, GATED)
                of_tokens = brought_by_tokens(x_scales, residual, n, t, N, T, x_scale_row, residual_row)
                y, up = _sums(parts, share, GATED, SPLIT, SHARE, BN, BT)
                _finish(y, up, out, of_rows, of_tokens, n, t, N, T, out_row, scale, cap, GATED, ACT, CAPPED)
            tl.store(counters + tile, 0)


@kernel
def _leave(acc, parts, counter, part, SPLIT: tl.constexpr):
    """Leaves a part of a sum in memory; how many parts are there: all, but for the interpreter, which waits
    for nobody.
    """
    at = tl.arange(0, acc.shape[0])[:, None] * acc.shape[1] + tl.arange(0, acc.shape[1])[None, :]
    tl.store(parts + part * acc.numel + at, acc)
    tl.debug_barrier()  # all threads have stored, then one of them counts
    come = tl.atomic_add(counter, 1, sem="acq_rel") + 1
    if not INTERPRETED:
        while come < SPLIT:
            come = tl.atomic_add(counter, 0, sem="acquire")
        tl.debug_barrier()
    return come


@kernel
def leave_zero(counter, SPLIT: tl.constexpr):
    """Zero in the counter when all programs have seen that all parts are there."""
    if tl.atomic_add(counter, 1, sem="relaxed") == 2 * SPLIT - 1:
        tl.store(counter, 0)


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
    acc, up, out, of_rows, of_tokens, n, t, N, T, out_row, scale, cap,
    GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Whatever follows the sums of rows ``n`` of the weight, and the result."""
    y = ended(acc, up, of_rows, of_tokens, scale, cap, GATED, ACT, CAPPED)
    at = out + t[None, :].to(tl.int64) * out_row + n[:, None]
    tl.store(at, rounded(y, out.dtype.element_ty), (n < N)[:, None] & (t < T)[None, :])
