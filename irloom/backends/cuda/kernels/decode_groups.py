"""Attention of sequences that bring one token, on Hopper: keys are copied far ahead by a warp of their own.

As in ``decode`` all keys are one line that is cut into equal parts, one a program. A program has some KV
heads, one for each of its warps: so no warp waits for another's sums. One more warp has the keys and values
of the program's whole part copied to shared memory, whatever sequences they belong to, as places there fall
free: nothing waits for the start and the end of a sequence, however short it is.
"""

from __future__ import annotations

import torch

from ..work import Workspace
from .attention_call import Call, Tile
from .decode_copy import blocks_of, copy
from .decode_warps import attend
from .groups_mode import fence_async_shared, gdc, gl, groups, mapped, varying_groups
from .mode import options, tl
from .prefill_groups import barriers
from .tiles import power_of_two


@groups
def added(a, b):
    """Their sum."""
    return a + b


@groups
def part_of(
    seqs, starts, context, MIXED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    KEYS: tl.constexpr, SCAN: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """As ``decode_attention.part_of``, of blocks of ``KEYS``.

    Each warp learns it by itself, without a barrier: from ``SCAN`` sequences at a time, at most 1024.
    """
    program, programs = gl.program_id(1), gl.num_programs(1)
    some = gl.arange(0, SCAN, gl.BlockedLayout([SCAN // 32], [32], [WARPS], [0]))
    n = blocks_of(some, some < seqs, starts, context, MIXED, WINDOW, CHUNK, KEYS)
    line = gl.sum(n, 0)
    for at in range(SCAN, seqs, SCAN):
        line += gl.sum(blocks_of(at + some, at + some < seqs, starts, context, MIXED, WINDOW, CHUNK, KEYS), 0)
    part = gl.maximum((line + programs - 1) // programs, 1)
    begin = program * part
    ends = gl.associative_scan(n, 0, added)
    s, passed = gl.sum((ends <= begin).to(gl.int32), 0), gl.max(gl.where(ends <= begin, ends, 0), 0)
    for at in range(SCAN, seqs, SCAN):
        n = blocks_of(at + some, at + some < seqs, starts, context, MIXED, WINDOW, CHUNK, KEYS)
        ends = gl.max(ends, 0) + gl.associative_scan(n, 0, added)
        s += gl.sum((ends <= begin).to(gl.int32), 0)
        passed = gl.maximum(passed, gl.max(gl.where(ends <= begin, ends, 0), 0))
    return begin, gl.minimum(begin + part, line), part, s, passed


@varying_groups("seqs", "table_row")
def decode_groups(
    out, sums, tops, totals, counts, q, k_map, v_map, table, starts, context, sinks, slopes,
    seqs, q_row, q_head, out_row, out_head, table_row, sink_row,
    GROUP: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, SLOPED: tl.constexpr, SUNK: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, PAIRS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
    MIXED: tl.constexpr, SCAN: tl.constexpr, PARTS: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """Program (h, p): part ``p`` of all keys for the block ``h`` of ``HEADS`` KV heads.

    ``sums`` f32[h, 2 p, HEADS * ROWS, DIM], ``tops`` and ``totals`` f32[h, 2 p, HEADS * ROWS] are for
    sequences that are cut; ``counts`` i32[h, p] of zeros is left as zeros.
    """
    tile: tl.constexpr = gl.NVMMASharedLayout(DIM, 16, rank=4)
    k_store = gl.allocate_shared_memory(k_map.dtype, [STAGES, 1, HEADS, KEYS, DIM // 2], tile)
    v_store = gl.allocate_shared_memory(k_map.dtype, [STAGES, 1, HEADS, KEYS, DIM // 2], tile)
    ready, free = barriers(STAGES, 1), barriers(STAGES, 1)
    fence_async_shared()
    begin, end, part, s, passed = part_of(seqs, starts, context, MIXED, WINDOW, CHUNK, KEYS, SCAN, HEADS)
    if CHAIN:
        gdc.gdc_wait()
        gdc.gdc_launch_dependents()
    gl.warp_specialize(
        [
            (attend, (
                out, sums, tops, totals, counts, q, k_store, v_store, ready, free, starts, context, sinks,
                slopes, q_row, q_head, out_row, out_head, sink_row, begin, end, part, s, passed, GROUP, HEADS,
                ROWS, DIM, SCALE, SOFTCAP, SLOPED, SUNK, WINDOW, CHUNK, PAIRS, KEYS, STAGES, MIXED, PARTS,
            )),
            (copy, (
                k_map, v_map, k_store, v_store, ready, free, table, starts, context, table_row, begin, end, s,
                passed, HEADS, DIM, PAGE, WINDOW, CHUNK, KEYS, STAGES, MIXED,
            )),
        ],
        [1],
        [24],
    )  # fmt: skip


def run_decode_groups(call: Call, tile: Tile, work: Workspace) -> None:
    """``run_decode`` of tiles with ``groups``: a warp for each of some KV heads."""
    step, (k, v, _) = call.step, call.kept()
    heads, rows, dim = tile.warps, power_of_two(call.group), call.q.shape[2]
    blocks = k.shape[2] // heads
    most = step.seqs * -(-call.table.shape[1] * call.cache.page // tile.keys)
    chips = torch.cuda.get_device_properties(call.q.device).multi_processor_count
    programs = max(1, min(chips * tile.resident // blocks, most))
    sums = work.take((blocks, 2 * programs, heads * rows, dim), torch.float32)
    tops, totals = (work.take((blocks, 2 * programs, heads * rows), torch.float32) for _ in range(2))
    maps = (mapped(x.transpose(1, 2), 1, heads, tile.keys, dim // 2) for x in (k, v))  # head by head
    given = call.constants(tile)
    same = "GROUP", "DIM", "PAGE", "SCALE", "SOFTCAP", "SLOPED", "SUNK", "WINDOW", "CHUNK", "PAIRS"
    (q, _, _, *rest) = call.tensors()
    decode_groups[blocks, programs](
        call.out, sums, tops, totals, work.counters, q, *maps, *rest, *call.sizes(),
        **{n: given[n] for n in same}, HEADS=heads, ROWS=rows, KEYS=tile.keys, STAGES=tile.stages,
        MIXED=not step.decode, SCAN=128 if step.seqs <= 128 else 1024, PARTS=4 if rows <= 4 else 2,
        **options(num_warps=heads, maxnreg=128),  # so that two programs fit: the warp that copies needs few
    )  # fmt: skip
