"""Attention of sequences that bring more than one token, on Hopper: copies and products are asynchronous.

One program stays on each multiprocessor. Some of its warps take blocks of 128 rows one after another, those
with the most keys first, and have what they need copied to shared memory; two groups of four warps attend
with 64 rows each. Nothing waits for the start and the end of a block but the first and the last.
"""

from __future__ import annotations

import torch

from ..work import Workspace
from .attention_call import Call, Tile
from .groups_attend import attend
from .groups_load import ROWS, TOLD, load
from .groups_mode import fence_async_shared, gdc, gl, groups, mapped, mbarrier, varying_groups
from .mode import options, tl
from .tiles import power_of_two


@groups
def barriers(COUNT: tl.constexpr, ARRIVE: tl.constexpr):
    """Barriers in shared memory that ``ARRIVE`` arrivals open."""
    made = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(made.index(i), count=ARRIVE)
    return made


@varying_groups("seqs", "table_row")
def prefill_groups(
    out, q_map, k_map, v_map, counts, table, starts, context, sinks, slopes,
    seqs, out_row, out_head, table_row, sink_row,
    GROUP: tl.constexpr, HEADS: tl.constexpr, KV: tl.constexpr, DIM: tl.constexpr,
    PAGE: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, SLOPED: tl.constexpr, SUNK: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """As ``prefill``, of 16-bit elements; ``counts`` i32[2] of zeros are left as zeros.

    A row is one of ``HEADS`` heads, a power of two, of which ``GROUP`` at the most are there.
    """
    CAST: tl.constexpr = k_map.dtype.primitive_bitwidth == 8
    dtype: tl.constexpr = gl.float16 if CAST else q_map.dtype
    BOX: tl.constexpr = k_map.block_shape[1]
    WARPS: tl.constexpr = tl.constexpr(4 if CAST else 1)
    tile: tl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    q_store = gl.allocate_shared_memory(q_map.dtype, [2, ROWS, DIM], tile)
    k_store = gl.allocate_shared_memory(dtype, [STAGES, KEYS, DIM], tile)
    v_store = gl.allocate_shared_memory(dtype, [STAGES, KEYS, DIM], tile)
    o_store = q_store
    if DIM <= 128:  # where there is room, the next queries need not wait for results to be written
        o_store = gl.allocate_shared_memory(q_map.dtype, [2, ROWS, DIM], tile)
    told = gl.allocate_shared_memory(gl.int32, [2 * TOLD, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    q_ready, q_free, told_ready, told_free = barriers(2, 1), barriers(2, 1), barriers(2, 1), barriers(2, 2)
    narrow, narrow_ready = k_store, q_ready
    if CAST:
        raw: tl.constexpr = gl.NVMMASharedLayout(k_map.block_shape[3], 8, rank=2)
        narrow, narrow_ready = gl.allocate_shared_memory(k_map.dtype, [2, KEYS, DIM], raw), barriers(2, 1)
    k_ready, k_free, v_ready, v_free = (
        barriers(STAGES, 1), barriers(STAGES, 2), barriers(STAGES, 1), barriers(STAGES, 2),
    )  # fmt: skip
    fence_async_shared()
    if CHAIN:
        gdc.gdc_wait()
        gdc.gdc_launch_dependents()
    gl.warp_specialize(
        [
            (attend, (
                0, out, q_store, k_store, v_store, o_store, told, q_ready, q_free, k_ready, k_free, v_ready,
                v_free, told_ready, told_free, sinks, slopes, out_row, out_head, sink_row, GROUP, HEADS,
                SCALE, SOFTCAP, SLOPED, SUNK, WINDOW, CHUNK, KEYS, STAGES, BOX, DIM,
            )),
            (attend, (
                1, out, q_store, k_store, v_store, o_store, told, q_ready, q_free, k_ready, k_free, v_ready,
                v_free, told_ready, told_free, sinks, slopes, out_row, out_head, sink_row, GROUP, HEADS,
                SCALE, SOFTCAP, SLOPED, SUNK, WINDOW, CHUNK, KEYS, STAGES, BOX, DIM,
            )),
            (load, (
                q_map, k_map, v_map, q_store, k_store, v_store, narrow, told, q_ready, q_free, k_ready,
                k_free, v_ready, v_free, narrow_ready, told_ready, told_free, counts, table, starts, context,
                seqs, table_row, GROUP, HEADS, KV, DIM, PAGE, WINDOW, CHUNK, KEYS, STAGES,
                WARPS,
            )),
        ],
        [4, WARPS],
        [200 if CAST else 240, 104 if CAST else 24],
    )  # fmt: skip


def run_groups(call: Call, tile: Tile, work: Workspace) -> None:
    """``run_prefill`` of tiles with ``groups``."""
    k, v, heads = call.cache.k, call.cache.v, power_of_two(call.group)
    box = 1, min(k.shape[1], tile.keys), 1, min(k.shape[3], 128 // k.element_size())
    maps = mapped(call.q, ROWS.value // heads, heads, 64), mapped(k, *box), mapped(v, *box)
    (_, _, _, *rest), (seqs, _, _, *strides) = call.tensors(), call.sizes()
    given = call.constants(tile)
    same = "GROUP", "DIM", "PAGE", "SCALE", "SOFTCAP", "SLOPED", "SUNK", "WINDOW", "CHUNK"
    programs = torch.cuda.get_device_properties(call.q.device).multi_processor_count
    prefill_groups[(programs,)](
        call.out, *maps, work.counters, *rest, seqs, *strides, **{n: given[n] for n in same}, HEADS=heads,
        KV=k.shape[2], KEYS=tile.keys, STAGES=tile.stages, **options(num_warps=tile.warps),
    )  # fmt: skip
