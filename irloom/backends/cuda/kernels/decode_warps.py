"""The warps of ``decode_groups`` that multiply: each has the query heads of one KV head."""

# ruff: noqa: RUF005 (Triton joins tuples, but does not unpack them)

from __future__ import annotations

from .decode_copy import blocks_of
from .groups_attend import LOG2E, NOTHING
from .groups_load import since
from .groups_mode import gl, groups, mbarrier, mma_v2
from .mode import tl
from .over_keys import floats


@groups
def quads(x, PAIRS: tl.constexpr):
    """Of four entries of fp8 in two of ``x``, the first two and the last two as f16."""
    if PAIRS == 4:
        return gl.inline_asm_elementwise(
            "{ .reg .b16 a, b; mov.b32 {a, b}, $2;"
            " cvt.rn.f16x2.e4m3x2 $0, a; cvt.rn.f16x2.e4m3x2 $1, b; }",
            "=r,=r,r", [x], dtype=(gl.float16, gl.float16), is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return gl.inline_asm_elementwise(
            "prmt.b32 $0, $2, 0, 0x1404; prmt.b32 $1, $2, 0, 0x3424;",
            "=r,=r,r", [x], dtype=(gl.float16, gl.float16), is_pure=True, pack=2,
        )  # fmt: skip


@groups
def queries(
    here, q_head, GROUP: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, half: tl.constexpr,
    layout: tl.constexpr,
):  # fmt: skip
    """Two of every four features of all query heads, as ``quads`` has the keys' [HEADS, 16, DIM / 2]."""
    over: tl.constexpr = gl.SliceLayout(2, layout)
    h = gl.arange(0, HEADS, gl.SliceLayout(1, over))[:, None]
    row = gl.arange(0, 16, gl.SliceLayout(0, over))[None]
    p = gl.arange(0, DIM // 2, gl.SliceLayout(0, gl.SliceLayout(1, layout)))[None, None, :]
    at = ((h * GROUP + row) * q_head)[:, :, None] + p // 2 * 4 + p % 2 + 2 * half
    x = gl.load(here + at, ((row < GROUP) & (h >= 0))[:, :, None] & (p >= 0), 0.0).to(gl.float32)
    return gl.minimum(gl.maximum(x, -65504.0), 65504.0).to(gl.float16)


@groups
def joined(
    out, sums, tops, totals, sinks, first, parts, out_head, GROUP: tl.constexpr, HEADS: tl.constexpr,
    ROWS: tl.constexpr, DIM: tl.constexpr, SUNK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Write what ``parts`` programs from the ``first`` on have made of one sequence."""
    flat: tl.constexpr = gl.BlockedLayout([1, DIM // 32], [1, 32], [HEADS, 1], [1, 0])
    row = gl.arange(0, HEADS * ROWS, gl.SliceLayout(1, flat))
    feature = gl.arange(0, DIM, gl.SliceLayout(0, flat))
    top = gl.full([HEADS * ROWS], NOTHING, gl.float32, gl.SliceLayout(1, flat))
    total = gl.zeros([HEADS * ROWS], gl.float32, gl.SliceLayout(1, flat))
    acc = gl.zeros([HEADS * ROWS, DIM], gl.float32, flat)
    for p in range(0, parts, PARTS):
        some, above, below = (), (), ()
        higher = top
        for i in gl.static_range(PARTS):
            place = (2 * (first + p + i) + gl.where(p + i > 0, 0, 1)) * (HEADS * ROWS) + row
            known = (p + i < parts) & (row >= 0)
            at = sums + place.to(gl.int64)[:, None] * DIM + feature[None]
            some = some + (gl.load(at, known[:, None], 0.0, cache_modifier=".cg"),)
            above = above + (gl.load(tops + place, known, NOTHING, cache_modifier=".cg"),)
            below = below + (gl.load(totals + place, known, 0.0, cache_modifier=".cg"),)
        for i in gl.static_range(PARTS):
            higher = gl.maximum(higher, above[i])
        kept = gl.exp2(top - higher)
        total, acc, top = total * kept, acc * kept[:, None], higher
        for i in gl.static_range(PARTS):
            weight = gl.exp2(above[i] - higher)
            total += below[i] * weight
            acc += some[i] * weight[:, None]
    head, inside = row // ROWS * GROUP + row % ROWS, row % ROWS < GROUP
    if SUNK:
        sink = gl.load(sinks + head, inside, 0.0).to(gl.float32) * LOG2E
        higher = gl.maximum(top, sink)
        kept = gl.exp2(top - higher)
        total = total * kept + gl.exp2(sink - higher)
        acc = acc * kept[:, None]
    acc = acc / total[:, None]
    gl.store(out + (head * out_head)[:, None] + feature[None], acc.to(out.dtype.element_ty), inside[:, None])


@groups
def whole(even, odd):
    """Features of values [h, rows, DIM], of which there are the even and the odd ones."""
    return gl.join(even, odd).reshape([even.shape[0], even.shape[1], 2 * even.shape[2]])


@groups
def products(q_low, q_high, k_store, stage, mma: tl.constexpr, PAIRS: tl.constexpr):
    """Products of queries with a block of keys [HEADS, 16, KEYS]: two sums, neither waits."""
    HEADS: tl.constexpr = k_store.shape[2]
    KEYS: tl.constexpr = k_store.shape[3]
    tile = k_store.index(stage).reshape([HEADS, KEYS, k_store.shape[4]]).permute((0, 2, 1))
    low, high = quads(tile.load(gl.DotOperandLayout(1, mma, 2)), PAIRS)
    zero = gl.zeros([HEADS, 16, KEYS], gl.float32, mma)
    return mma_v2(q_low, low, zero) + mma_v2(q_high, high, zero)


@groups
def added(
    even, odd, top, total, x, v_store, free, stage, start, n, first, slope, SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr, SLOPED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """Add a block of values, of which the products with keys are ``x``; its place is free then."""
    mma: tl.constexpr = even.type.layout
    factor: tl.constexpr = LOG2E if SOFTCAP > 0 or SLOPED else SCALE * LOG2E
    tile = v_store.index(stage).reshape([v_store.shape[2], v_store.shape[3], v_store.shape[4]])
    low, high = floats(tile.load(gl.DotOperandLayout(1, mma, 2)), PAIRS)
    mbarrier.arrive(free.index(stage), count=1)
    x = scored(x, start, n, first, slope, SCALE, SOFTCAP, SLOPED, WINDOW, CHUNK)
    higher = gl.maximum(top, gl.max(x, 2) * factor)
    weight = gl.exp2(x * factor - higher[:, :, None])
    kept = gl.exp2(top - higher)
    total = total * kept + gl.sum(weight, 2)
    p = gl.convert_layout(weight.to(gl.float16), gl.DotOperandLayout(0, mma, 2))
    even = mma_v2(p, low, even * kept[:, :, None])
    odd = mma_v2(p, high, odd * kept[:, :, None])
    return even, odd, higher, total


@groups
def scored(
    x, start, n, first, slope, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, SLOPED: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Scores of the products ``x`` with keys from ``start`` on, of which a block has those up to ``n - 1``
    at its end.
    """
    place = gl.arange(0, x.shape[2], gl.SliceLayout(0, gl.SliceLayout(1, x.type.layout)))[None, None, :]
    early = gl.maximum(start + x.shape[2] - n, 0)
    key = start + place - early
    if SOFTCAP > 0:
        x = SOFTCAP - 2 * SOFTCAP / (gl.exp2(x * (2 * SCALE * LOG2E / SOFTCAP)) + 1)
    elif SLOPED:
        x = x * SCALE
    if SLOPED:
        x += slope[:, :, None] * (key - (n - 1)).to(gl.float32)
    seen = place >= early
    if WINDOW or CHUNK:
        seen = seen & (key >= first)
    return gl.where(seen, x, float("-inf"))


@groups
def attend(
    out, sums, tops, totals, counts, q, k_store, v_store, ready, free, starts, context, sinks, slopes,
    q_row, q_head, out_row, out_head, sink_row, begin, end, part, s, passed,
    GROUP: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr, SLOPED: tl.constexpr, SUNK: tl.constexpr, WINDOW: tl.constexpr,
    CHUNK: tl.constexpr, PAIRS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr, MIXED: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Attend to a program's part of the line: a warp to a KV head, in products of its own."""
    mma: tl.constexpr = gl.NVMMADistributedLayout([2, 0], [HEADS, 1, 1], [1, 16, 8])
    left: tl.constexpr = gl.DotOperandLayout(0, mma, 2)
    rows: tl.constexpr = gl.SliceLayout(2, mma)
    block, program, programs = gl.program_id(0), gl.program_id(1), gl.num_programs(1)
    head = block * HEADS * GROUP
    sums += block.to(gl.int64) * programs * 2 * HEADS * ROWS * DIM
    tops += block * programs * 2 * HEADS * ROWS
    totals += block * programs * 2 * HEADS * ROWS
    row = gl.arange(0, 16, gl.SliceLayout(0, rows))[None]
    own = gl.arange(0, HEADS, gl.SliceLayout(1, rows))[:, None]
    inside = (row < GROUP) & (own >= 0)
    slope = gl.zeros([HEADS, 16], gl.float32, rows)
    if SLOPED:
        slope = gl.load(slopes + head + own * GROUP + row, inside, 0.0).to(gl.float32)
    stage, phase = gl.to_tensor(0), gl.to_tensor(0)
    while begin < end:
        n = gl.load(context + s)
        count = blocks_of(s, s >= 0, starts, context, MIXED, WINDOW, CHUNK, KEYS)
        if count > 0:
            token = s
            if MIXED:
                token = gl.load(starts + s)
            first = since(n - 1, WINDOW, CHUNK)
            until = gl.minimum(passed + count, end)
            opens, closes = begin == passed, until == passed + count
            zero = first // KEYS - passed
            here = q + token.to(gl.int64) * q_row + head * q_head
            q_low = queries(here, q_head, GROUP, HEADS, DIM, 0, left)
            q_high = queries(here, q_head, GROUP, HEADS, DIM, 1, left)
            top = gl.full([HEADS, 16], NOTHING, gl.float32, rows)
            total = gl.zeros([HEADS, 16], gl.float32, rows)
            even = gl.zeros([HEADS, 16, DIM // 2], gl.float32, mma)
            odd = gl.zeros([HEADS, 16, DIM // 2], gl.float32, mma)
            mbarrier.wait(ready.index(stage), phase)
            x = products(q_low, q_high, k_store, stage, mma, PAIRS)
            while begin + 1 < until:
                after = gl.where(stage == STAGES - 1, 0, stage + 1)
                phase = gl.where(stage == STAGES - 1, phase ^ 1, phase)
                mbarrier.wait(ready.index(after), phase)
                ahead = products(q_low, q_high, k_store, after, mma, PAIRS)  # while this block is weighed
                even, odd, top, total = added(
                    even, odd, top, total, x, v_store, free, stage, (zero + begin) * KEYS, n, first, slope,
                    SCALE, SOFTCAP, SLOPED, WINDOW, CHUNK, PAIRS,
                )  # fmt: skip
                x, stage = ahead, after
                begin += 1
            even, odd, top, total = added(
                even, odd, top, total, x, v_store, free, stage, (zero + begin) * KEYS, n, first, slope, SCALE,
                SOFTCAP, SLOPED, WINDOW, CHUNK, PAIRS,
            )  # fmt: skip
            phase = gl.where(stage == STAGES - 1, phase ^ 1, phase)
            stage = gl.where(stage == STAGES - 1, 0, stage + 1)
            there = out + token.to(gl.int64) * out_row + head * out_head
            sink_at = sinks + token.to(gl.int64) * sink_row + head
            if opens & closes:
                weight = 1 / total
                if SUNK:
                    sink = gl.load(sink_at + own * GROUP + row, inside, 0.0).to(gl.float32) * LOG2E
                    higher = gl.maximum(top, sink)
                    weight = gl.exp2(top - higher)
                    weight = weight / (total * weight + gl.exp2(sink - higher))
                done = whole(even * weight[:, :, None], odd * weight[:, :, None])
                store(there, done.to(out.dtype.element_ty), GROUP * out_head, out_head, GROUP)
            else:
                at = 2 * program + opens.to(gl.int32)
                kept_at = sums + at.to(gl.int64) * (HEADS * ROWS * DIM)
                store(kept_at, whole(even, odd), ROWS * DIM, DIM, ROWS)
                spot = at * (HEADS * ROWS) + own * ROWS + row
                gl.store(tops + spot, top, (row < ROWS) & (own >= 0))
                gl.store(totals + spot, total, (row < ROWS) & (own >= 0))
                gl.thread_barrier()  # all of it is written before this program counts as done
                opened, closed = passed // part, (passed + count - 1) // part
                counted = counts + block * programs + opened
                if gl.atomic_add(counted, 1, sem="acq_rel", scope="gpu") == closed - opened:
                    gl.store(counted, 0)
                    joined(
                        there, sums, tops, totals, sink_at, opened, closed - opened + 1, out_head, GROUP,
                        HEADS, ROWS, DIM, SUNK, PARTS,
                    )  # fmt: skip
            begin = until
        passed += count
        s += 1


@groups
def store(there, x, per_head, per_row, GROUP: tl.constexpr):
    """Leave the rows of the query heads that there are."""
    layout: tl.constexpr = x.type.layout
    over: tl.constexpr = gl.SliceLayout(2, layout)
    h = gl.arange(0, x.shape[0], gl.SliceLayout(1, over))[:, None]
    row = gl.arange(0, x.shape[1], gl.SliceLayout(0, over))[None]
    feature = gl.arange(0, x.shape[2], gl.SliceLayout(0, gl.SliceLayout(1, layout)))[None, None, :]
    at = (h * per_head + row * per_row)[:, :, None] + feature
    gl.store(there + at, x, ((row < GROUP) & (h >= 0))[:, :, None] & (feature >= 0))
