"""Attention of sequences that bring more than one token, over their keys in the cache.

A program has a block of rows, tokens times the query heads that share a KV head, and goes over the keys that
any of these sees: blocks of keys that every row sees without a mask, those at the edges with one.
"""

from __future__ import annotations

from .mode import go_on, kernel, rounded, tl, varying, wait
from .over_keys import over_keys
from .paged_keys import NOTHING, PER_ROW, columns, finish, since, widened


@kernel
def owner_of(block, starts, seqs, TOKENS: tl.constexpr):
    """The sequence that has this block: each has blocks of its own, enough for its tokens and some more."""
    low, high = 0, seqs
    while low < high:
        middle = (low + high) // 2
        if tl.load(starts + middle) // TOKENS + middle <= block:
            low = middle + 1
        else:
            high = middle
    return low - 1


@varying("seqs", "table_row")
def prefill(
    out, q, k, v, table, starts, context, sinks, slopes,
    seqs, q_row, q_head, out_row, out_head, table_row, sink_row,
    GROUP: tl.constexpr, HEADS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr,
    K_PAGE: tl.constexpr, K_TOKEN: tl.constexpr, K_HEAD: tl.constexpr,
    V_PAGE: tl.constexpr, V_TOKEN: tl.constexpr, V_HEAD: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, VALUE: tl.constexpr, VALUES: tl.constexpr,
    SHARED: tl.constexpr, PAGE: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
    SLOPED: tl.constexpr, SUNK: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    PAIRS: tl.constexpr, BLOCK: tl.constexpr, ALIKE: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """Program (h, b): block ``b`` of tokens, the last first, for block ``h`` of query heads.

    Of ``ROWS`` rows, each token has ``HEADS``, and ``BLOCKS`` blocks of heads share a KV head. With ``ALIKE``
    sequences that bring one token run here too, and all blocks of keys with a mask: what is computed for a
    token does not depend on the tokens that are beside it.
    """
    WHOLE: tl.constexpr = MAIN if MAIN < DIM else DIM
    wait(CHAIN)
    go_on(CHAIN)
    TOKENS: tl.constexpr = ROWS // HEADS
    heads, block = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)
    s = owner_of(block, starts, seqs, TOKENS)
    start = tl.load(starts + s)
    count = tl.load(starts + s + 1) - start
    offset = (block - start // TOKENS - s) * TOKENS
    if count <= (0 if ALIKE else 1) or offset >= count:
        return
    n = tl.load(context + s)
    kv = heads // BLOCKS
    head = kv * GROUP + heads % BLOCKS * HEADS
    row = tl.arange(0, ROWS)
    token, part = offset + row // HEADS, row % HEADS
    inside = (token < count) & (row < TOKENS * HEADS) & (heads % BLOCKS * HEADS + part < GROUP)
    at = n - count + tl.minimum(token, count - 1)
    slope = tl.zeros((ROWS,), tl.float32)
    if SLOPED:
        slope = tl.load(slopes + head + part, inside, 0.0).to(tl.float32)
    q += start.to(tl.int64) * q_row + head * q_head
    out += start.to(tl.int64) * out_row + head * out_head
    k += kv * K_HEAD
    v += kv * V_HEAD
    table += s.to(tl.int64) * table_row
    place = token * q_row + part * q_head
    main = widened(columns(q, place, inside, 0, WHOLE, MAIN), k, PAIRS)
    rest = main
    if REST:
        rest = widened(columns(q, place, inside, MAIN, DIM - MAIN, REST), k, PAIRS)
    low = n - count + offset
    high = n - count + tl.minimum(offset + TOKENS, count) - 1
    first = since(low, WINDOW, CHUNK)
    begin = first // BLOCK * BLOCK
    full_end = tl.maximum((low + 1) // BLOCK * BLOCK, begin)
    if ALIKE:
        full_end = begin
    full_begin = begin
    acc = tl.zeros((ROWS, VALUES), tl.float32)
    top = tl.full((ROWS,), NOTHING, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if WINDOW or CHUNK:
        full_begin = tl.minimum((since(high, WINDOW, CHUNK) + BLOCK - 1) // BLOCK * BLOCK, full_end)
        acc, top, total = over_keys(
            acc, top, total, main, rest, k, v, table, at, slope, begin, full_begin, first, high + 1,
            K_PAGE, K_TOKEN, V_PAGE, V_TOKEN, DIM, MAIN, REST, VALUE, VALUES, SHARED, PAGE, SCALE, SOFTCAP,
            SLOPED, WINDOW, CHUNK, BLOCK, PER_ROW, PAIRS,
        )  # fmt: skip
    acc, top, total = over_keys(
        acc, top, total, main, rest, k, v, table, at, slope, full_begin, full_end, first, high + 1,
        K_PAGE, K_TOKEN, V_PAGE, V_TOKEN, DIM, MAIN, REST, VALUE, VALUES, SHARED, PAGE, SCALE, SOFTCAP,
        SLOPED, WINDOW, CHUNK, BLOCK, 0, PAIRS,
    )  # fmt: skip
    acc, top, total = over_keys(
        acc, top, total, main, rest, k, v, table, at, slope, full_end, high + 1, first, high + 1,
        K_PAGE, K_TOKEN, V_PAGE, V_TOKEN, DIM, MAIN, REST, VALUE, VALUES, SHARED, PAGE, SCALE, SOFTCAP,
        SLOPED, WINDOW, CHUNK, BLOCK, PER_ROW, PAIRS,
    )  # fmt: skip
    sink = tl.zeros((ROWS,), tl.float32)
    if SUNK:
        sink = tl.load(sinks + (start + token).to(tl.int64) * sink_row + head + part, inside, 0.0).to(
            tl.float32
        )
    done = finish(acc, top, total, sink, SUNK)
    feature = tl.arange(0, VALUES)
    where = inside[:, None] & (feature < VALUE)[None]
    tl.store(
        out + (token * out_row + part * out_head)[:, None] + feature[None],
        rounded(done, out.dtype.element_ty),
        where,
    )
