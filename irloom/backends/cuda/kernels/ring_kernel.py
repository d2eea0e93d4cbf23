"""The kernel of ``ring``: one warp copies, four or eight multiply."""

# pyright: reportOperatorIssue=false
# (a number that may be known to the compiler is a number)

from __future__ import annotations

from .finish import brought_by_rows, brought_by_tokens, ended
from .groups_mode import (
    fence_async_shared,
    gdc,
    gl,
    groups,
    mbarrier,
    tma,
    varying_groups,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from .mode import tl
from .streamed import leave_zero


@varying_groups("T")
def ring_kernel(
    out, x, w, x_scales, w_scales, bias, residual, parts, counters,
    T, N, K, out_row, residual_row, x_scale_row, w_scale_row, scale, cap,
    GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr, SPLIT: tl.constexpr,
    BN: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, WARPS: tl.constexpr,
    CHAIN: tl.constexpr,
):  # fmt: skip
    """``x`` and ``w`` are boxes. Programs of a tile stand side by side, so that those that wait for others
    are never all that run.
    """
    HALVES: tl.constexpr = tl.constexpr(2 if GATED else 1)
    SHARE: tl.constexpr = BN // SPLIT
    flat: tl.constexpr = gl.BlockedLayout([min(8, BN // SPLIT // 8), 1], [8, 4], [1, WARPS], [0, 1])
    w_store = gl.allocate_shared_memory(w.dtype, [STAGES * HALVES, BN, BK], w.layout)
    x_store = gl.allocate_shared_memory(x.dtype, [STAGES, BT, BK], x.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    tile, part, token_tiles = gl.program_id(0) // SPLIT, gl.program_id(0) % SPLIT, gl.cdiv(T, BT)
    t0, n0 = (tile % token_tiles) * BT, (tile // token_tiles) * BN
    each = gl.cdiv(gl.cdiv(K, BK), SPLIT) * BK
    first = part * each
    steps = gl.cdiv(gl.maximum(gl.minimum(K - first, each), 0), BK)
    if CHAIN:
        gdc.gdc_launch_dependents()
    for s in gl.static_range(STAGES):
        mbarrier.init(ready.index(s), count=1)
        mbarrier.init(free.index(s), count=1)
    fence_async_shared()
    n = n0 + part * SHARE + gl.arange(0, SHARE, gl.SliceLayout(1, flat))
    t = t0 + gl.arange(0, BT, gl.SliceLayout(0, flat))
    of_rows = brought_by_rows(w_scales, bias, n, N, w_scale_row, GATED)
    acc, up, of_tokens = gl.warp_specialize(
        [
            (
                _multiply,
                (
                    w_store,
                    x_store,
                    ready,
                    free,
                    x_scales,
                    residual,
                    n,
                    t,
                    N,
                    T,
                    x_scale_row,
                    residual_row,
                    steps,
                    HALVES,
                    STAGES,
                    WARPS,
                    CHAIN,
                ),
            ),
            (_load, (w, x, w_store, x_store, ready, free, t0, n0, N, first, steps, HALVES, STAGES, CHAIN)),
        ],
        [1],
        [24],
    )
    if SPLIT > 1:
        parts += (tile * SPLIT).to(gl.int64) * (HALVES * BN * BT)
        _leave(acc, up, parts + part * (HALVES * BN * BT), counters + tile, SPLIT, GATED)
        acc = _sum(parts, part * SHARE, SPLIT, SHARE, HALVES * BN * BT, BN, BT, flat)
        if GATED:
            up = _sum(parts + BN * BT, part * SHARE, SPLIT, SHARE, HALVES * BN * BT, BN, BT, flat)
    else:
        acc = gl.convert_layout(acc, flat)
        if GATED:
            up = gl.convert_layout(up, flat)
    y = ended(acc, up, of_rows, of_tokens, scale, cap, GATED, ACT, CAPPED)
    at = out + t[None, :].to(gl.int64) * out_row + n[:, None]
    gl.store(at, y.to(out.dtype.element_ty), (n < N)[:, None] & (t < T)[None, :])
    if SPLIT > 1:
        leave_zero(counters + tile, SPLIT)


@groups
def _load(
    w, x, w_store, x_store, ready, free, t0, n0, N, first, steps,
    HALVES: tl.constexpr, STAGES: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """Fills the ring: with weights at once, with tokens when they are there."""
    BK: tl.constexpr = w.block_shape[1]
    BYTES: tl.constexpr = (
        (HALVES * w.block_shape[0] + x.block_shape[0]) * BK * w.dtype.primitive_bitwidth // 8
    )
    for s in gl.static_range(STAGES):
        mbarrier.expect(ready.index(s), BYTES, pred=s < steps)
        for h in gl.static_range(HALVES):
            tma.async_copy_global_to_shared(
                w, [n0 + h * N, first + s * BK], ready.index(s), w_store.index(s * HALVES + h), pred=s < steps
            )
    if CHAIN:
        gdc.gdc_wait()
    for s in gl.static_range(STAGES):
        tma.async_copy_global_to_shared(
            x, [t0, first + s * BK], ready.index(s), x_store.index(s), pred=s < steps
        )
    for i in range(STAGES, steps):
        stage = i % STAGES
        mbarrier.wait(free.index(stage), (i // STAGES & 1) ^ 1)
        mbarrier.expect(ready.index(stage), BYTES)
        for h in gl.static_range(HALVES):
            tma.async_copy_global_to_shared(
                w, [n0 + h * N, first + i * BK], ready.index(stage), w_store.index(stage * HALVES + h)
            )
        tma.async_copy_global_to_shared(x, [t0, first + i * BK], ready.index(stage), x_store.index(stage))


@groups
def _multiply(
    w_store, x_store, ready, free, x_scales, residual, n, t, N, T, x_scale_row, residual_row, steps,
    HALVES: tl.constexpr, STAGES: tl.constexpr, WARPS: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """The sums of a program's rows of the weight, and of those that are gated; what tokens bring besides."""
    if CHAIN:
        gdc.gdc_wait()
    of_tokens = brought_by_tokens(x_scales, residual, n, t, N, T, x_scale_row, residual_row)
    BITS: tl.constexpr = w_store.dtype.primitive_bitwidth
    BN: tl.constexpr = w_store.shape[1]
    BT: tl.constexpr = x_store.shape[1]
    sums: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BT, 256 // BITS])
    acc = gl.zeros([BN, BT], gl.float32, sums)
    up = acc
    for i in range(steps):
        stage = i % STAGES
        mbarrier.wait(ready.index(stage), i // STAGES & 1)
        tokens = x_store.index(stage).permute((1, 0))
        acc = warpgroup_mma(w_store.index(stage * HALVES), tokens, acc, is_async=True)
        if HALVES == 2:
            up = warpgroup_mma(w_store.index(stage * HALVES + 1), tokens, up, is_async=True)
            acc, up = warpgroup_mma_wait(2, deps=(acc, up))
        else:
            acc = warpgroup_mma_wait(1, deps=(acc,))
        mbarrier.arrive(free.index((i + STAGES - 1) % STAGES), count=1, pred=i > 0)
    if HALVES == 2:
        acc, up = warpgroup_mma_wait(0, deps=(acc, up))
    else:
        acc = warpgroup_mma_wait(0, deps=(acc,))
        up = acc
    return acc, up, of_tokens


@groups
def _leave(acc, up, parts, counter, SPLIT: tl.constexpr, GATED: tl.constexpr):
    """Leaves a part of a sum in memory, and waits for all parts."""
    BN: tl.constexpr = acc.shape[0]
    BT: tl.constexpr = acc.shape[1]
    row = gl.arange(0, BN, gl.SliceLayout(1, acc.type.layout))
    column = gl.arange(0, BT, gl.SliceLayout(0, acc.type.layout))
    at = parts + column[None, :] * BN + row[:, None]
    gl.store(at, acc)
    if GATED:
        gl.store(at + BN * BT, up)
    gl.thread_barrier()  # all threads have stored, then one of them counts
    come = gl.atomic_add(counter, 1, sem="acq_rel") + 1
    while come < SPLIT:
        come = gl.atomic_add(counter, 0, sem="acquire")
    gl.thread_barrier()


@groups
def _sum(
    parts, first, SPLIT: tl.constexpr, SHARE: tl.constexpr, SIZE: tl.constexpr, BN: tl.constexpr,
    BT: tl.constexpr, flat: tl.constexpr,
):  # fmt: skip
    """All parts of ``SHARE`` rows, added in order."""
    row = first + gl.arange(0, SHARE, gl.SliceLayout(1, flat))
    at = parts + gl.arange(0, BT, gl.SliceLayout(0, flat))[None, :] * BN + row[:, None]
    y = gl.load(at, cache_modifier=".cg")
    for p in gl.static_range(1, SPLIT):
        y += gl.load(at + p * SIZE, cache_modifier=".cg")
    return y
