"""Attention by groups of warps: those that multiply, weigh scores and write what rows attend to.

A group has 64 rows. The product of a block's weights and values runs while the next block's scores are
weighed, and one group multiplies while another one weighs.
"""

from __future__ import annotations

from .groups_load import ROWS, TOLD, since
from .groups_mode import fence_async_shared, gl, groups, mbarrier, warpgroup_mma, warpgroup_mma_wait
from .mode import tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
NOTHING: tl.constexpr = tl.constexpr(-1e30)
"""A row's greatest score before it has seen a key: finite, so that differences of two such are no NaN."""


@groups
def heard(told, place):
    """A number that was left by those that load."""
    return gl.max(told.index(place).load(gl.BlockedLayout([1], [32], [4], [0])), 0)


@groups
def halved(q_store, g: tl.constexpr, flat: tl.constexpr, DIM: tl.constexpr):
    """The queries of a group, in f16 where they lie."""
    wide = q_store.index(g).load(flat).to(gl.float32)
    halves = gl.minimum(gl.maximum(wide, -65504.0), 65504.0).to(gl.float16)
    gl.thread_barrier()
    q_store.index(g)._reinterpret(gl.float16, [ROWS, DIM], gl.NVMMASharedLayout(128, 16, rank=2)).store(
        halves
    )
    fence_async_shared()
    gl.thread_barrier()


@groups
def weighed(
    s, top, total, at, slope, start, n, MASK: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
    SLOPED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr, BOX: tl.constexpr,
):  # fmt: skip
    """Weights of the products ``s`` with keys from ``start`` on, what remains of earlier ones, and the new
    ``top`` and ``total``.

    ``BOX`` keys were copied at a time, fewer and after some that do not count where they end with ``n - 1``.
    """
    factor: tl.constexpr = LOG2E if SOFTCAP > 0 or SLOPED else SCALE * LOG2E
    if SOFTCAP > 0:
        s = SOFTCAP - 2 * SOFTCAP / (gl.exp2(s * (2 * SCALE * LOG2E / SOFTCAP)) + 1)
    elif SLOPED:
        s = s * SCALE
    if MASK or SLOPED:
        place = gl.arange(0, KEYS, gl.SliceLayout(0, s.type.layout))
        early = gl.maximum(gl.minimum(start + place // BOX * BOX + BOX - n, BOX), 0)
        key = start + place - early
        if SLOPED:
            s += slope[:, None] * (key[None] - at[:, None]).to(gl.float32)
        if MASK:
            seen = (key[None] <= at[:, None]) & (place % BOX >= early)[None]
            if WINDOW or CHUNK:
                seen = seen & (key[None] >= since(at, WINDOW, CHUNK)[:, None])
            s = gl.where(seen, s, float("-inf"))
    higher = gl.maximum(top, gl.max(s, 1) * factor)
    weight = gl.exp2(s * factor - higher[:, None])
    kept = gl.exp2(top - higher)
    return weight, kept, higher, total * kept + gl.sum(weight, 1)


@groups
def blocks_down(
    acc, p, top, total, q, k_store, v_store, k_ready, k_free, v_ready, v_free, at, slope, n, blocks, upto,
    end, MASK: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, SLOPED: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr, BOX: tl.constexpr,
):  # fmt: skip
    """Attend to blocks of keys ``upto`` down to ``end``.

    ``p`` are the weights of the block before, whose product with values is yet to be added to ``acc``.
    """
    ahead: tl.constexpr = p.type.layout
    zero = gl.zeros([ROWS, KEYS], gl.float32, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16]))
    while upto >= end:
        stage, before = blocks % STAGES, (blocks - 1) % STAGES
        mbarrier.wait(k_ready.index(stage), blocks // STAGES & 1)
        s = warpgroup_mma(q, k_store.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True)
        mbarrier.wait(v_ready.index(before), (blocks - 1) // STAGES & 1)
        acc = warpgroup_mma(p, v_store.index(before), acc, is_async=True)
        s = warpgroup_mma_wait(1, deps=(s,))
        mbarrier.arrive(k_free.index(stage), count=1)
        weight, kept, top, total = weighed(
            s, top, total, at, slope, upto * KEYS, n, MASK, SCALE, SOFTCAP, SLOPED, WINDOW, CHUNK, KEYS, BOX
        )
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(v_free.index(before), count=1)
        p = gl.convert_layout(weight.to(p.dtype), ahead)
        acc = acc * gl.convert_layout(kept, gl.SliceLayout(1, acc.type.layout))[:, None]
        blocks += 1
        upto -= 1
    return acc, p, top, total, blocks, upto


@groups
def write(
    out,
    acc,
    store,
    start,
    offset,
    count,
    head,
    out_row,
    out_head,
    g: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Rows of a group, by way of shared memory: those of tokens and heads that there are."""
    TOKENS: tl.constexpr = ROWS // HEADS
    DIM: tl.constexpr = acc.shape[1]
    flat: tl.constexpr = gl.BlockedLayout([1, 8], [32 // (DIM // 8), DIM // 8], [4, 1], [1, 0])
    gl.thread_barrier()
    store.store(acc.to(store.dtype))
    gl.thread_barrier()
    row = gl.arange(0, ROWS, gl.SliceLayout(1, flat))
    token, part = offset + g * TOKENS + row // HEADS, row % HEADS
    place = (start + token).to(gl.int64) * out_row + (head + part) * out_head
    feature = gl.arange(0, DIM, gl.SliceLayout(0, flat))
    gl.store(
        out + place[:, None] + feature[None], store.load(flat), ((token < count) & (part < GROUP))[:, None]
    )


@groups
def attend(
    g: tl.constexpr, out, q_store, k_store, v_store, o_store, told, q_ready, q_free, k_ready, k_free, v_ready,
    v_free, told_ready, told_free, sinks, slopes, out_row, out_head, sink_row,
    GROUP: tl.constexpr, HEADS: tl.constexpr, SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr, SLOPED: tl.constexpr, SUNK: tl.constexpr, WINDOW: tl.constexpr,
    CHUNK: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr, BOX: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Group ``g`` of the two, until there are no more blocks of rows."""
    TOKENS: tl.constexpr = ROWS // HEADS
    CAST: tl.constexpr = q_store.dtype != k_store.dtype
    s_layout: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    o_layout: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    p_layout: tl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    o_rows: tl.constexpr = gl.SliceLayout(1, o_layout)
    flat: tl.constexpr = gl.BlockedLayout([1, 8], [32 // (DIM // 8), DIM // 8], [4, 1], [1, 0])
    q = q_store.index(g)
    if CAST:
        q = q._reinterpret(k_store.dtype, [ROWS, DIM], gl.NVMMASharedLayout(128, 16, rank=2))
    row = gl.arange(0, ROWS, gl.SliceLayout(1, s_layout))
    zero = gl.zeros([ROWS, KEYS], gl.float32, s_layout)
    done, blocks = gl.to_tensor(0), gl.to_tensor(0)
    mbarrier.wait(told_ready.index(0), 0)
    kv = heard(told, 0)
    while kv >= 0:
        slot = done % 2
        start, count = heard(told, slot * TOLD + 1), heard(told, slot * TOLD + 2)
        offset, n = heard(told, slot * TOLD + 3), heard(told, slot * TOLD + 4)
        gl.thread_barrier()
        mbarrier.arrive(told_free.index(slot), count=1)
        head = kv * GROUP
        token, part = offset + g * TOKENS + row // HEADS, row % HEADS
        at = n - count + gl.minimum(token, count - 1)
        slope = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, s_layout))
        if SLOPED:
            slope = gl.load(slopes + head + part, part < GROUP, 0.0).to(gl.float32)
        low = n - count + offset
        high = n - count + gl.minimum(offset + 2 * TOKENS, count) - 1
        end = since(low, WINDOW, CHUNK) // KEYS
        whole = gl.maximum((low + 1) // KEYS, end)
        clear = end
        if WINDOW or CHUNK:
            clear = gl.minimum((since(high, WINDOW, CHUNK) + KEYS - 1) // KEYS, whole)
        upto = high // KEYS
        acc = gl.zeros([ROWS, DIM], gl.float32, o_layout)
        top = gl.full([ROWS], NOTHING, gl.float32, gl.SliceLayout(1, s_layout))
        total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, s_layout))
        mbarrier.wait(q_ready.index(g), done & 1)
        if CAST:
            halved(q_store, g, flat, DIM)
        stage = blocks % STAGES
        mbarrier.wait(k_ready.index(stage), blocks // STAGES & 1)
        s = warpgroup_mma(q, k_store.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=(s,))
        mbarrier.arrive(k_free.index(stage), count=1)
        weight, _, top, total = weighed(
            s, top, total, at, slope, upto * KEYS, n, True, SCALE, SOFTCAP, SLOPED, WINDOW, CHUNK, KEYS, BOX
        )
        p = gl.convert_layout(weight.to(k_store.dtype), p_layout)
        blocks += 1
        upto -= 1
        if upto >= whole:
            acc, p, top, total, blocks, upto = blocks_down(
                acc, p, top, total, q, k_store, v_store, k_ready, k_free, v_ready, v_free, at, slope, n,
                blocks, upto, whole, True, SCALE, SOFTCAP, SLOPED, WINDOW, CHUNK, KEYS, STAGES, BOX,
            )  # fmt: skip
        acc, p, top, total, blocks, upto = blocks_down(
            acc, p, top, total, q, k_store, v_store, k_ready, k_free, v_ready, v_free, at, slope, n,
            blocks, upto, clear, False, SCALE, SOFTCAP, SLOPED, WINDOW, CHUNK, KEYS, STAGES, BOX,
        )  # fmt: skip
        if WINDOW or CHUNK:
            acc, p, top, total, blocks, upto = blocks_down(
                acc, p, top, total, q, k_store, v_store, k_ready, k_free, v_ready, v_free, at, slope, n,
                blocks, upto, end, True, SCALE, SOFTCAP, SLOPED, WINDOW, CHUNK, KEYS, STAGES, BOX,
            )  # fmt: skip
        if DIM <= 128:
            mbarrier.arrive(q_free.index(g), count=1)
        stage = (blocks - 1) % STAGES
        mbarrier.wait(v_ready.index(stage), (blocks - 1) // STAGES & 1)
        acc = warpgroup_mma(p, v_store.index(stage), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(v_free.index(stage), count=1)
        if SUNK:
            there = sinks + (start + token).to(gl.int64) * sink_row + head + part
            sink = gl.load(there, (token < count) & (part < GROUP), 0.0).to(gl.float32) * LOG2E
            higher = gl.maximum(top, sink)
            kept = gl.exp2(top - higher)
            total = total * kept + gl.exp2(sink - higher)
            acc = acc * gl.convert_layout(kept, o_rows)[:, None]
        acc = acc * gl.convert_layout(1 / total, o_rows)[:, None]
        write(out, acc, o_store.index(g), start, offset, count, head, out_row, out_head, g, GROUP, HEADS)
        if DIM > 128:  # results passed through where the queries are
            fence_async_shared()
            gl.thread_barrier()
            mbarrier.arrive(q_free.index(g), count=1)
        done += 1
        mbarrier.wait(told_ready.index(done % 2), done // 2 & 1)
        kv = heard(told, done % 2 * TOLD)
