"""Attention by groups of warps: those that choose blocks of rows, and have what these need copied.

A block's queries, keys and values go to shared memory as places there fall free, ahead of those that
multiply: the copy engine takes whole pages, and warps that wait for it hold few registers. Keys in fp8 pass
through a place of their own, and are made f16 on the way.
"""

from __future__ import annotations

from .groups_mode import fence_async_shared, gl, groups, mbarrier, tma
from .mode import tl

ROWS: tl.constexpr = tl.constexpr(64)
"""Rows of a group that multiplies."""

PANEL: tl.constexpr = tl.constexpr(64)
"""Features that lie side by side in shared memory: 128 bytes, over which they are swizzled."""

TOLD: tl.constexpr = tl.constexpr(5)
"""What the others are told of a block: its KV head, where its sequence starts, how many tokens that brings,
which of them is the block's first, and the sequence's keys.
"""


@groups
def since(at, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The first key that a token at ``at`` sees; 0 stands for no window and for no chunk."""
    first = at * 0
    if WINDOW:
        first = gl.maximum(first, at - WINDOW + 1)
    if CHUNK:
        first = gl.maximum(first, at // CHUNK * CHUNK)
    return first


@groups
def counted(starts, seqs, total, WARPS: tl.constexpr):
    """How many sequences in front bring one token each, and how many there are: those after are padding."""
    more, there = seqs + 1, seqs * 0
    for first in range(0, seqs, 128):
        s = first + gl.arange(0, 128, gl.BlockedLayout([1], [32], [WARPS], [0]))
        start = gl.load(starts + s, s < seqs, total)
        there += gl.sum((start < total).to(gl.int32), 0)
        end = gl.load(starts + s + 1, s < seqs, s + 1)
        more = gl.minimum(more, gl.min(gl.where(end != s + 1, s, seqs + 1), 0))
    return gl.minimum(more, there), there


@groups
def sequence_of(starts, block, alone, upto, TOKENS: tl.constexpr, WARPS: tl.constexpr):
    """The last sequence before ``upto`` that has ``block``, or an earlier one, as its first.

    Sequences after those ``alone`` have blocks of ``TOKENS`` of their own, enough for what they bring and
    some more. Whoever goes down by blocks finds most of them in the 128 that are looked at first.
    """
    first, found = upto, block * 0
    while (found == 0) & (first > alone):
        end = first
        first = gl.maximum(end - 128, alone)
        s = first + gl.arange(0, 128, gl.BlockedLayout([1], [32], [WARPS], [0]))
        start = gl.load(starts + s, s < end, 0)
        found = gl.sum(((s < end) & ((start - alone) // TOKENS + s - alone <= block)).to(gl.int32), 0)
    return first + found - 1


@groups
def tell(told, place, value, WARPS: tl.constexpr):
    """Leave a number for the others."""
    told.index(place).store(gl.full([1], value, gl.int32, gl.BlockedLayout([1], [32], [WARPS], [0])))


@groups
def fetch(
    x_map, store, ready, pages, block, n, kv, PAGE: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr
):
    """Have a block of keys, or of values, copied from its pages.

    The copy of a last page begins so much earlier that it ends with key ``n - 1``: what is in front of a
    page, and of a page that is not there, are zeros, whatever memory holds.
    """
    BOX: tl.constexpr = x_map.block_shape[1]
    WIDE: tl.constexpr = x_map.block_shape[3]
    BYTES: tl.constexpr = x_map.dtype.primitive_bitwidth // 8
    boxes = store._reinterpret(
        x_map.dtype, [(DIM // WIDE) * (KEYS // BOX), 1, BOX, 1, WIDE],
        gl.NVMMASharedLayout(WIDE * BYTES, 8 * BYTES, rank=4),
    )  # fmt: skip
    mbarrier.expect(ready, KEYS * DIM * BYTES)
    for b in gl.static_range(KEYS // BOX):
        key = block * KEYS + b * BOX
        page = gl.load(pages + key // PAGE, key < n, -1)
        entry = key % PAGE - gl.maximum(gl.minimum(key + BOX - n, BOX), 0)
        for p in gl.static_range(DIM // WIDE):
            tma.async_copy_global_to_shared(
                x_map, [page, entry, kv, p * WIDE], ready, boxes.index(p * (KEYS // BOX) + b)
            )


@groups
def cast(store, narrow, ready, phase, DIM: tl.constexpr, WARPS: tl.constexpr):
    """A block of fp8 that has been copied, as f16."""
    flat: tl.constexpr = gl.BlockedLayout([1, 8], [32 // (DIM // 8), DIM // 8], [WARPS, 1], [1, 0])
    mbarrier.wait(ready, phase)
    store.store(narrow.load(flat).to(gl.float16))
    fence_async_shared()
    gl.thread_barrier()


@groups
def bring(
    x_map, store, ready, free, narrow, narrow_ready, place: tl.constexpr, blocks, pages, upto, end, n, kv,
    PAGE: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr, DIM: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """Block ``upto`` of keys, or of values, to where it is multiplied, as soon as that is free.

    What is cast has been copied to ``place`` of ``narrow``, where the next block goes then.
    """
    stage, phase = blocks % STAGES, blocks // STAGES & 1
    mbarrier.wait(free.index(stage), phase ^ 1)
    if x_map.dtype.primitive_bitwidth == 8:
        there, came = narrow.index(place), narrow_ready.index(place)
        cast(store.index(stage), there, came, blocks & 1, DIM, WARPS)
        mbarrier.arrive(ready.index(stage), count=1)
        if upto > end:
            fetch(x_map, there, came, pages, upto - 1, n, kv, PAGE, KEYS, DIM)
    else:
        fetch(x_map, store.index(stage), ready.index(stage), pages, upto, n, kv, PAGE, KEYS, DIM)


@groups
def load(
    q_map, k_map, v_map, q_store, k_store, v_store, narrow, told, q_ready, q_free, k_ready, k_free, v_ready,
    v_free, narrow_ready, told_ready, told_free, counts, table, starts, context, seqs, table_row,
    GROUP: tl.constexpr, HEADS: tl.constexpr, KV: tl.constexpr, DIM: tl.constexpr,
    PAGE: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
    WARPS: tl.constexpr,
):  # fmt: skip
    """Take blocks of rows, the last of a sequence first, until there are no more."""
    CAST: tl.constexpr = k_map.dtype.primitive_bitwidth == 8
    PANELS: tl.constexpr = DIM // PANEL
    TOKENS: tl.constexpr = ROWS // HEADS
    queries = q_store._reinterpret(
        q_map.dtype, [2 * PANELS, TOKENS, HEADS, PANEL], gl.NVMMASharedLayout(128, 16, rank=3)
    )
    total = gl.load(starts + seqs)
    alone, upto_seq = counted(starts, seqs, total, WARPS)
    tiles = ((total - alone) // (2 * TOKENS) + upto_seq - alone) * KV
    tile = gl.program_id(0)
    done, blocks = tile * 0, tile * 0
    while tile < tiles:
        block, kv = (tiles - 1 - tile) // KV, tile % KV
        s = sequence_of(starts, block, alone, upto_seq, 2 * TOKENS, WARPS)
        upto_seq = s + 1
        start = gl.load(starts + s)
        count = gl.load(starts + s + 1) - start
        offset = (block - (start - alone) // (2 * TOKENS) - (s - alone)) * (2 * TOKENS)
        if (count > 1) & (offset < count):
            n = gl.load(context + s)
            slot = done % 2
            mbarrier.wait(told_free.index(slot), (done // 2 & 1) ^ 1)
            tell(told, slot * TOLD, kv, WARPS)
            tell(told, slot * TOLD + 1, start, WARPS)
            tell(told, slot * TOLD + 2, count, WARPS)
            tell(told, slot * TOLD + 3, offset, WARPS)
            tell(told, slot * TOLD + 4, n, WARPS)
            gl.thread_barrier()
            mbarrier.arrive(told_ready.index(slot), count=1)
            for g in gl.static_range(2):
                mbarrier.wait(q_free.index(g), (done & 1) ^ 1)
                mbarrier.expect(q_ready.index(g), ROWS * DIM * 2)
                for p in gl.static_range(PANELS):
                    tma.async_copy_global_to_shared(
                        q_map, [start + offset + g * TOKENS, kv * GROUP, p * PANEL], q_ready.index(g),
                        queries.index(g * PANELS + p),
                    )  # fmt: skip
            low = n - count + offset
            high = n - count + gl.minimum(offset + 2 * TOKENS, count) - 1
            upto, end = high // KEYS, since(low, WINDOW, CHUNK) // KEYS
            pages = table + s.to(gl.int64) * table_row
            if CAST:
                fetch(k_map, narrow.index(0), narrow_ready.index(0), pages, upto, n, kv, PAGE, KEYS, DIM)
                fetch(v_map, narrow.index(1), narrow_ready.index(1), pages, upto, n, kv, PAGE, KEYS, DIM)
            while upto >= end:
                bring(
                    k_map, k_store, k_ready, k_free, narrow, narrow_ready, 0, blocks, pages, upto, end, n, kv,
                    PAGE, KEYS, STAGES, DIM, WARPS,
                )  # fmt: skip
                bring(
                    v_map, v_store, v_ready, v_free, narrow, narrow_ready, 1, blocks, pages, upto, end, n, kv,
                    PAGE, KEYS, STAGES, DIM, WARPS,
                )  # fmt: skip
                blocks += 1
                upto -= 1
            done += 1
        tile = gl.num_programs(0) + gl.atomic_add(counts, 1, sem="relaxed")
    slot = done % 2
    mbarrier.wait(told_free.index(slot), (done // 2 & 1) ^ 1)
    tell(told, slot * TOLD, -1, WARPS)
    gl.thread_barrier()
    mbarrier.arrive(told_ready.index(slot), count=1)
    if gl.atomic_add(counts + 1, 1) == gl.num_programs(0) - 1:
        gl.store(counts, 0)
        gl.store(counts + 1, 0)
