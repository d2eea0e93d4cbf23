"""The warp of ``decode_groups`` that has keys and values copied."""

from __future__ import annotations

from .groups_load import since
from .groups_mode import gl, groups, mbarrier, tma
from .mode import tl


@groups
def blocks_of(
    s, inside, starts, context, MIXED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """As ``decode_attention.blocks_of``."""
    n = gl.load(context + s, inside, 0)
    if MIXED:
        brings = gl.load(starts + s + 1, inside, 0) - gl.load(starts + s, inside, 0)
        n = gl.where(brings == 1, n, 0)
    first = since(gl.maximum(n - 1, 0), WINDOW, CHUNK)
    return (n + KEYS - 1) // KEYS - first // KEYS


@groups
def copy(
    k_map, v_map, k_store, v_store, ready, free, table, starts, context, table_row, begin, end, s, passed,
    HEADS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    KEYS: tl.constexpr, STAGES: tl.constexpr, MIXED: tl.constexpr,
):  # fmt: skip
    """Have a program's part of the line copied, a block of ``KEYS`` after the other.

    The copy of a last block begins so much earlier that it ends with the last key: so a place that holds no
    key is never read, as what it holds may be no number.
    """
    kv = gl.program_id(0) * HEADS
    stage, phase = gl.to_tensor(0), gl.to_tensor(1)
    while begin < end:
        n = gl.load(context + s)
        count = blocks_of(s, s >= 0, starts, context, MIXED, WINDOW, CHUNK, KEYS)
        if count > 0:
            zero = since(n - 1, WINDOW, CHUNK) // KEYS - passed
            until = gl.minimum(passed + count, end)
            pages = table + s.to(gl.int64) * table_row
            while begin < until:
                start = (zero + begin) * KEYS
                page = gl.load(pages + start // PAGE)
                entry = start % PAGE - gl.maximum(start + KEYS - n, 0)
                mbarrier.wait(free.index(stage), phase)
                mbarrier.expect(ready.index(stage), 2 * HEADS * KEYS * DIM)
                place = [page, kv, entry, 0]
                tma.async_copy_global_to_shared(k_map, place, ready.index(stage), k_store.index(stage))
                tma.async_copy_global_to_shared(v_map, place, ready.index(stage), v_store.index(stage))
                stage += 1
                phase = gl.where(stage == STAGES, phase ^ 1, phase)
                stage = gl.where(stage == STAGES, 0, stage)
                begin += 1
        passed += count
        s += 1
