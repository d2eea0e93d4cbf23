"""Attention of sequences that bring one token: as many programs as run at once share all keys evenly.

The keys of all sequences, in blocks, are one line that is cut into equal parts, one a program (stream-K): no
program is idle while another has a long sequence to itself, and the grid does not depend on lengths. A
sequence that is cut is put together by whichever of its programs ends last, which it learns from a count.
All query heads that share a KV head are rows of one product, so keys are read once.
"""

# ruff: noqa: RUF005 (Triton joins tuples, but does not unpack them)

from __future__ import annotations

from .mode import go_on, kernel, rounded, tl, varying, wait
from .over_keys import over_keys
from .paged_keys import ALL_ALIKE, NOTHING, columns, finish, since, widened


@kernel
def blocks_of(
    s, seqs, starts, context, MIXED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """How many blocks of keys each of the sequences ``s`` reads: none unless it brings one token."""
    n = tl.load(context + s, s < seqs, 0)
    if MIXED:
        brings = tl.load(starts + s + 1, s < seqs, 0) - tl.load(starts + s, s < seqs, 0)
        n = tl.where(brings == 1, n, 0)
    first = since(tl.maximum(n - 1, 0), WINDOW, CHUNK)
    return (n + BLOCK - 1) // BLOCK - first // BLOCK


@kernel
def part_of(
    program, programs, seqs, starts, context, MIXED: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr, SCAN: tl.constexpr,
):  # fmt: skip
    """The program's part of the line of blocks: where it begins and ends, and how long each is but the last.

    Also the sequence that it begins in, and where in the line that begins.
    """
    line = 0
    for at in range(0, seqs, SCAN):
        line += tl.sum(blocks_of(at + tl.arange(0, SCAN), seqs, starts, context, MIXED, WINDOW, CHUNK, BLOCK))
    part = tl.maximum((line + programs - 1) // programs, 1)
    begin = program * part
    s, passed, upto = 0, 0, 0
    for at in range(0, seqs, SCAN):
        n = blocks_of(at + tl.arange(0, SCAN), seqs, starts, context, MIXED, WINDOW, CHUNK, BLOCK)
        ends = upto + tl.cumsum(n, 0)
        s += tl.sum((ends <= begin).to(tl.int32))
        passed = tl.maximum(passed, tl.max(tl.where(ends <= begin, ends, 0)))
        upto += tl.sum(n)
    return begin, tl.minimum(begin + part, line), part, s, passed


@kernel
def joined(
    out, sums, tops, totals, sinks, first, parts, heads, out_head, VALUE: tl.constexpr, ROWS: tl.constexpr,
    VALUES: tl.constexpr, SUNK: tl.constexpr, PARTS: tl.constexpr, LINES: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """Write what ``parts`` programs from the ``first`` on have made of one sequence, for ``heads`` rows.

    A program has ``EACH`` places: of two, the first is for a sequence that it goes on with. ``PARTS`` parts
    are read at a time, and ``LINES`` rows of each: a thread reads the same entries of all, so that no thread
    waits for another.
    """
    feature = tl.arange(0, VALUES)
    for start in range(0, heads, LINES):
        row = start + tl.arange(0, LINES)
        real = row < heads
        top = tl.full((LINES,), NOTHING, tl.float32)
        total = tl.zeros((LINES,), tl.float32)
        acc = tl.zeros((LINES, VALUES), tl.float32)
        for p in range(0, parts, PARTS):
            some, above, below = (), (), ()
            higher = top
            for i in tl.static_range(PARTS):
                place = (EACH * (first + p + i) + tl.where(p + i > 0, 0, EACH - 1)) * ROWS + row
                known = real & (p + i < parts)
                at = sums + place.to(tl.int64)[:, None] * VALUES + feature[None]
                some = some + (tl.load(at, known[:, None], 0.0, cache_modifier=".cg"),)
                above = above + (tl.load(tops + place, known, NOTHING, cache_modifier=".cg"),)
                below = below + (tl.load(totals + place, known, 0.0, cache_modifier=".cg"),)
            for i in tl.static_range(PARTS):
                higher = tl.maximum(higher, above[i])
            kept = tl.exp2(top - higher)
            total, acc, top = total * kept, acc * kept[:, None], higher
            for i in tl.static_range(PARTS):
                weight = tl.exp2(above[i] - higher)
                total += below[i] * weight
                acc += some[i] * weight[:, None]
        sink = tl.zeros((LINES,), tl.float32)
        if SUNK:
            sink = tl.load(sinks + row, real, 0.0).to(tl.float32)
        done = finish(acc, top, total, sink, SUNK)
        where = real[:, None] & (feature < VALUE)[None]
        tl.store(out + row[:, None] * out_head + feature[None], rounded(done, out.dtype.element_ty), where)


@varying("seqs", "table_row")
def decode(
    out, sums, tops, totals, counts, q, k, v, table, starts, context, sinks, slopes,
    seqs, q_row, q_head, out_row, out_head, table_row, sink_row,
    GROUP: tl.constexpr, HEADS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr,
    K_PAGE: tl.constexpr, K_TOKEN: tl.constexpr, K_HEAD: tl.constexpr,
    V_PAGE: tl.constexpr, V_TOKEN: tl.constexpr, V_HEAD: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, VALUE: tl.constexpr, VALUES: tl.constexpr,
    SHARED: tl.constexpr, PAGE: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
    SLOPED: tl.constexpr, SUNK: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    PAIRS: tl.constexpr, BLOCK: tl.constexpr, MIXED: tl.constexpr, SCAN: tl.constexpr,
    PARTS: tl.constexpr, LINES: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """Program (h, p): part ``p`` of all keys for block ``h`` of query heads, ``BLOCKS`` of them a KV head.

    ``sums`` f32[h, 2 p, ROWS, VALUES], ``tops`` and ``totals`` f32[h, 2 p, ROWS] are for sequences that are
    cut; ``counts`` i32[h, p] of zeros is left as zeros.
    """
    WHOLE: tl.constexpr = MAIN if MAIN < DIM else DIM
    block, program, programs = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    begin, end, part, s, passed = part_of(
        program, programs, seqs, starts, context, MIXED, WINDOW, CHUNK, BLOCK, SCAN
    )
    wait(CHAIN)  # lengths are there: the step's first kernel lets none start before
    go_on(CHAIN)
    kv = block // BLOCKS
    real = tl.minimum(GROUP - block % BLOCKS * HEADS, HEADS)
    row = tl.arange(0, ROWS)
    inside = row < real
    head = kv * GROUP + block % BLOCKS * HEADS
    slope = tl.zeros((ROWS,), tl.float32)
    if SLOPED:
        slope = tl.load(slopes + head + row, inside, 0.0).to(tl.float32)
    k += kv * K_HEAD
    v += kv * V_HEAD
    sums += block.to(tl.int64) * programs * 2 * ROWS * VALUES
    tops += block * programs * 2 * ROWS
    totals += block * programs * 2 * ROWS
    while begin < end:
        n = tl.load(context + s)
        count = blocks_of(s, seqs, starts, context, MIXED, WINDOW, CHUNK, BLOCK)
        if count > 0:
            token = s
            if MIXED:
                token = tl.load(starts + s)
            first = since(n - 1, WINDOW, CHUNK)
            until = tl.minimum(passed + count, end)
            zero = first // BLOCK - passed
            at = tl.zeros((ROWS,), tl.int32) + n - 1
            here = q + token.to(tl.int64) * q_row + head * q_head
            top, total = tl.full((ROWS,), NOTHING, tl.float32), tl.zeros((ROWS,), tl.float32)
            acc = tl.zeros((ROWS, VALUES), tl.float32)
            pages = table + s.to(tl.int64) * table_row
            main = widened(columns(here, row * q_head, inside, 0, WHOLE, MAIN), k, PAIRS)
            rest = main
            if REST:
                rest = widened(columns(here, row * q_head, inside, MAIN, DIM - MAIN, REST), k, PAIRS)
            acc, top, total = over_keys(
                acc, top, total, main, rest, k, v, pages, at, slope,
                (zero + begin) * BLOCK, (zero + until) * BLOCK, first, n,
                K_PAGE, K_TOKEN, V_PAGE, V_TOKEN, DIM, MAIN, REST, VALUE, VALUES, SHARED, PAGE, SCALE,
                SOFTCAP, SLOPED, WINDOW, CHUNK, BLOCK, ALL_ALIKE, PAIRS,
            )  # fmt: skip
            feature = tl.arange(0, VALUES)
            there = out + token.to(tl.int64) * out_row + head * out_head
            own = sinks + token.to(tl.int64) * sink_row + head
            if (begin == passed) & (until == passed + count):
                sink = tl.zeros((ROWS,), tl.float32)
                if SUNK:
                    sink = tl.load(own + row, inside, 0.0).to(tl.float32)
                done = finish(acc, top, total, sink, SUNK)
                where = inside[:, None] & (feature < VALUE)[None]
                tl.store(
                    there + row[:, None] * out_head + feature[None],
                    rounded(done, out.dtype.element_ty),
                    where,
                )
            else:
                place = (2 * program + (begin == passed).to(tl.int32)) * ROWS
                tl.store(sums + (place + row)[:, None] * VALUES + feature[None], acc, inside[:, None])
                tl.store(tops + place + row, top)
                tl.store(totals + place + row, total)
                tl.debug_barrier()  # all of it is written before this program counts as done
                opened = passed // part
                closed = (passed + count - 1) // part
                counted = counts + block * programs + opened
                if tl.atomic_add(counted, 1, sem="acq_rel", scope="gpu") == closed - opened:
                    tl.store(counted, 0)
                    joined(
                        there, sums, tops, totals, own, opened, closed - opened + 1, real, out_head, VALUE,
                        ROWS, VALUES, SUNK, PARTS, LINES, 2,
                    )  # fmt: skip
            begin = until
        passed += count
        s += 1
