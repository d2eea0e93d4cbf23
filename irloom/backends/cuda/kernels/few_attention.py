"""Attention of few sequences that bring one token each, from projections on: a short way to an answer.

A program has one piece of one sequence. It starts while the kernel in front, which makes this step's queries,
keys and values, is running, and so may be those in front of that: each lets the next one start at once and
waits for one alone. Until it waits it reads only what no kernel of this step writes:

- where its piece lies: a step's first kernel puts its arrays in their places, waits for all kernels of the
  step before, and lets none start before it has ended (``exchange``);
- frequencies, slopes and weights of norms;
- keys and values of earlier tokens. All were kept in earlier steps, and in this one no kernel but this writes
  to this layer's cache: the places of this step's tokens, which are masked until they are known.

So the program that has a sequence's last keys makes the new one, keeps it, and sees it without the cache.
Pieces are of one length, such that about as many programs have one as run at a time. A sequence of several
is put together by whichever of their programs ends last, which it learns from a count.
"""

from __future__ import annotations

from .decode_attention import blocks_of, joined
from .fresh_heads import heads_of, kept, paired, turn_of, turned
from .mode import dot, go_on, kernel, rounded, tl, varying, wait
from .over_keys import floats
from .paged_keys import ALL_ALIKE, NOTHING, finish, keys, pages_of, places, scored, since, weighed, widened


@kernel
def piece_of(
    program, pieces, seqs, context, WINDOW: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    SCAN: tl.constexpr,
):  # fmt: skip
    """Which sequence a program has, where in its blocks the piece begins, how many a piece and it have.

    There are ``pieces`` of all sequences, or fewer than ``seqs`` more.
    """
    each = tl.arange(0, SCAN)
    blocks = blocks_of(each, seqs, context, context, False, WINDOW, CHUNK, BLOCK)
    piece = tl.maximum((tl.sum(blocks, 0) + pieces - 1) // pieces, 1)
    ends = tl.cumsum((blocks + piece - 1) // piece, 0)
    s = tl.sum((ends <= program).to(tl.int32), 0)
    passed = tl.max(tl.where(ends <= program, ends, 0), 0)
    return s, (program - passed) * piece, piece, tl.sum(tl.where(each == s, blocks, 0), 0)


@varying("table_row")
def few(
    out, sums, tops, totals, counts, q, k, v, table, starts, context, sinks, slopes,
    seqs, q_row, q_head, out_row, out_head, table_row, sink_row, pieces,
    new_k, new_v, kept_k, kept_v, q_norm, k_norm, freq, k_row, k_head, v_row, v_head, eps,
    GROUP: tl.constexpr, HEADS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr,
    K_PAGE: tl.constexpr, K_TOKEN: tl.constexpr, K_HEAD: tl.constexpr,
    V_PAGE: tl.constexpr, V_TOKEN: tl.constexpr, V_HEAD: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, VALUE: tl.constexpr, VALUES: tl.constexpr, PAGE: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, SLOPED: tl.constexpr, SUNK: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
    SCAN: tl.constexpr, PARTS: tl.constexpr, LINES: tl.constexpr, UNIT: tl.constexpr, HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr, TURN: tl.constexpr, NORM: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """Program (h, p): piece ``p`` of all, for block ``h`` of query heads, ``BLOCKS`` of them a KV head.

    ``sums`` f32[h, p, ROWS, VALUES], ``tops`` and ``totals`` f32[h, p, ROWS] are for sequences of several
    pieces; ``counts`` i32[h, seqs] of zeros is left as zeros. ``kept_k`` and ``kept_v`` are the caches as
    they are; ``k`` and ``v`` hold ``UNIT`` of their entries in one.
    """
    block, program, programs = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    s, begin, piece, blocks = piece_of(program, pieces, seqs, context, WINDOW, CHUNK, BLOCK, SCAN)
    row, feature = tl.arange(0, ROWS), tl.arange(0, VALUES)[None]
    kv, real = block // BLOCKS, tl.minimum(GROUP - block % BLOCKS * HEADS, HEADS)
    head, inside = kv * GROUP + block % BLOCKS * HEADS, row < real
    if begin < blocks:
        position = tl.load(context + s) - 1
        first, end = since(position, WINDOW, CHUNK), tl.minimum(begin + piece, blocks)
        zero = (first // BLOCK + begin) * BLOCK
        until = zero + (end - begin) * BLOCK
        pages = table + s.to(tl.int64) * table_row
        q_turn = turn_of(position, freq, q_norm, DIM, MAIN, HALF, INTERLEAVED, TURN, NORM)
        k_turn = turn_of(position, freq, k_norm, DIM, MAIN, HALF, INTERLEAVED, TURN, NORM)
        slope = tl.zeros((ROWS,), tl.float32)
        if SLOPED:
            slope = tl.load(slopes + head + row, inside, 0.0).to(tl.float32)
        acc, more, top, total = over_old_keys(
            q + s.to(tl.int64) * q_row + head * q_head, row * q_head, inside, k + kv * K_HEAD,
            v + kv * V_HEAD, pages, zero, until, end == blocks, first, position, slope,
            (new_k + s.to(tl.int64) * k_row + kv * k_head, kept_k + kv * K_HEAD * UNIT),
            (new_v + s.to(tl.int64) * v_row + kv * v_head, kept_v + kv * V_HEAD * UNIT), q_turn, k_turn, eps,
            K_PAGE, K_TOKEN, V_PAGE, V_TOKEN, DIM, MAIN, VALUE, VALUES, PAGE, SCALE, SOFTCAP, SLOPED, WINDOW,
            CHUNK, PAIRS, BLOCK, UNIT, NORM, CHAIN,
        )  # fmt: skip
        if PAIRS:
            acc = tl.reshape(tl.join(acc, more), (ROWS, VALUES))
        there = out + s.to(tl.int64) * out_row + head * out_head
        own = sinks + s.to(tl.int64) * sink_row + head
        if piece >= blocks:
            sink = tl.zeros((ROWS,), tl.float32)
            if SUNK:
                sink = tl.load(own + row, inside, 0.0).to(tl.float32)
            done = rounded(finish(acc, top, total, sink, SUNK), out.dtype.element_ty)
            tl.store(there + row[:, None] * out_head + feature, done, inside[:, None] & (feature < VALUE))
        else:
            mine = (block * programs + program) * ROWS + row
            tl.store(sums + mine.to(tl.int64)[:, None] * VALUES + feature, acc, inside[:, None])
            tl.store(tops + mine, top)
            tl.store(totals + mine, total)
            tl.debug_barrier()  # all of it is written before this program counts as done
            opened, parts = program - begin // piece, (blocks + piece - 1) // piece
            counted = counts + block * seqs + s
            if tl.atomic_add(counted, 1, sem="acq_rel", scope="gpu") == parts - 1:
                tl.store(counted, 0)
                joined(
                    there, sums, tops, totals, own, block * programs + opened, parts, real, out_head, VALUE,
                    ROWS, VALUES, SUNK, PARTS, LINES, 1,
                )  # fmt: skip
    wait(CHAIN)  # a program without a piece too: what comes behind waits for this kernel alone


@kernel
def over_old_keys(
    q, row, inside, k, v, pages, begin, end, last, first, position, slope, own_k, own_v, q_turn, k_turn, eps,
    K_PAGE: tl.constexpr, K_TOKEN: tl.constexpr, V_PAGE: tl.constexpr, V_TOKEN: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, VALUE: tl.constexpr, VALUES: tl.constexpr, PAGE: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, SLOPED: tl.constexpr, WINDOW: tl.constexpr,
    CHUNK: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr, NORM: tl.constexpr,
    CHAIN: tl.constexpr,
):  # fmt: skip
    """As ``over_keys`` of the cached keys before ``position``, and of the new one where ``last``.

    Queries and the new key are made in the first pass: so the first keys are on their way before the kernel
    in front has ended. The new one then takes its place in a block, and needs no products of its own. With
    ``PAIRS`` the sums of even features come first, then those of odd ones.
    """
    ROWS: tl.constexpr = row.shape[0]
    main = widened(tl.zeros((ROWS, MAIN), q.dtype.element_ty), k, PAIRS)
    acc = tl.zeros((ROWS, VALUES // UNIT), tl.float32)
    more, top, total = acc, tl.full((ROWS,), NOTHING, tl.float32), tl.zeros((ROWS,), tl.float32)
    at = tl.zeros((ROWS,), tl.int32) + position
    until = tl.minimum(end, position)
    page = pages_of(pages, begin, until, PAGE, BLOCK)
    own = tl.load(pages + position // PAGE, last, 0)
    one, feature = tl.zeros((1,), tl.int32), tl.arange(0, VALUES)[None]
    new_k, to_k = own_k
    new_v, to_v = own_v
    fresh_k = tl.zeros((1, MAIN), to_k.dtype.element_ty)
    fresh_v = tl.zeros((1, VALUES), to_v.dtype.element_ty)
    for start in range(begin, end, BLOCK):
        key = start + tl.arange(0, BLOCK)
        old = (key >= first) & (key < until)
        here, place = places(k, page, start, K_PAGE, K_TOKEN, PAGE, BLOCK)
        x = keys(here, place, old, 0, DIM // UNIT, MAIN // UNIT, ALL_ALIKE)
        here, place = places(v, page, start, V_PAGE, V_TOKEN, PAGE, BLOCK)
        y = keys(here, place, old, 0, VALUE // UNIT, VALUES // UNIT, ALL_ALIKE)
        page = pages_of(pages, start + BLOCK, until, PAGE, BLOCK)
        if start == begin:
            wait(CHAIN)
            go_on(CHAIN)  # not earlier: what comes behind would take room from what is in front
            heads = heads_of(q, row, inside, q_turn, DIM, MAIN)  # loads first: no barrier is between them
            its = heads_of(new_k, one, last & (one == 0), k_turn, DIM, MAIN)
            value = tl.load(new_v + feature, last & (feature < VALUE), 0.0)
            fresh_k, fresh_v = kept(
                its, value, to_k, to_v, own, position, last, k_turn, eps, K_PAGE * UNIT, K_TOKEN * UNIT,
                V_PAGE * UNIT, V_TOKEN * UNIT, DIM, MAIN, VALUE, VALUES, PAGE, NORM,
            )  # fmt: skip
            main = widened(turned(heads, q_turn, eps, DIM, NORM), k, PAIRS)
        fresh = last & (key == position)
        if PAIRS:
            even, odd = tl.split(tl.reshape(main, (ROWS, MAIN // 2, 2)))
            low, high = floats(tl.where(fresh[:, None], paired(fresh_k), x), PAIRS)
            s = dot(odd, tl.trans(high), dot(even, tl.trans(low), tl.zeros((ROWS, BLOCK), tl.float32)))
        else:
            x = tl.where(fresh[:, None], fresh_k.to(main.dtype), x.to(main.dtype))
            s = dot(main, tl.trans(x), tl.zeros((ROWS, BLOCK), tl.float32))
        s = scored(s, at, key, old | fresh, slope, SCALE, SOFTCAP, SLOPED, WINDOW, CHUNK, ALL_ALIKE)
        weight, part, top, total = weighed(s, top, total, SCALE, SOFTCAP, SLOPED)
        weight = rounded(weight, main.dtype)
        if PAIRS:
            low, high = floats(tl.where(fresh[:, None], paired(fresh_v), y), PAIRS)
            acc = dot(weight, low, acc * part[:, None])
            more = dot(weight, high, more * part[:, None])
        else:
            y = tl.where(fresh[:, None], fresh_v.to(main.dtype), y.to(main.dtype))
            acc = dot(weight, y, acc * part[:, None])
    return acc, more, top, total
