"""Tokens from logits, in the graph: greedy, or drawn after temperature, min-p, top-k and top-p.

The same tokens as ``runtime.sampler``, which says what the rules are. Random numbers come from the rows'
seeds and positions. Nothing is sorted: a first kernel goes over all logits once and leaves, for each
``CHUNK`` of them, the best score and what the scores weigh; the last finds each row's chunk from those, then
its token in it. For rows with top-k, top-p or min-p two more go between: see ``bounds`` and ``cuts``.

A row's result does not depend on other rows, nor on how many there are.
"""

from __future__ import annotations

import torch

from irloom.backends.cuda.work import Workspace
from irloom.runtime.core import BROKEN, DRAW

from .bounds import bounds, cuts_of, narrow
from .cuts import cut, scaled, weighs, weight
from .mode import go_on, kernel, options, tl, triton, wait
from .uniform import uniform

CHUNK = 256
"""Logits whose sum is kept: a warp reads so many at a time."""
SPAN = 16
"""Chunks of one program of the first kernel."""
NARROW = 4
"""Chunks of one program of the kernel that lists, and its warps."""
TILE = 1024
"""Scores that are cut at a time."""
SAMPLE = 8192
"""Logits that say where a cut will be; a power of two, and at most ``CAP``."""
CAP = 8192
"""Scores of a row that are listed where it is cut; where more may be left, it is read over and over."""
WORDS = DRAW.itemsize // 4


def sample(
    chosen: torch.Tensor, logits: torch.Tensor, draws: torch.Tensor, *, work: Workspace, cuts: bool = True
) -> None:
    """Choose ``chosen`` i32 [S], from ``logits`` [S, V] as ``draws`` i32 [S, 8] say (``runtime.core.DRAW``).

    ``BROKEN`` where logits are NaN, or the best is not finite; 0 for rows that ask for nothing. Without
    ``cuts`` no row has top-k, top-p or min-p.
    """
    rows, vocab = logits.shape
    chunks = -(-vocab // CHUNK)
    spans = -(-chunks // SPAN)
    width, every = spans * SPAN, triton.next_power_of_2(chunks)
    one = 2.0 ** min(50, 62 - vocab.bit_length())
    best = work.take((rows, width), torch.float32)
    share = work.take((rows, width), torch.float64)
    _survey[rows, spans](
        best, share, logits, draws, logits.stride(0), vocab, width,
        CHUNK=CHUNK, SPAN=SPAN, WORDS=WORDS, **options(num_warps=4),
    )  # fmt: skip
    if not cuts:
        _choose[(rows,)](
            chosen, best, share, logits, draws, logits.stride(0), vocab, width, chunks,
            CHUNK=CHUNK, ALL=every, WORDS=WORDS, NONE=BROKEN, **options(num_warps=4),
        )  # fmt: skip
        return
    found = work.take((rows, 4), torch.float32)
    counts, heads = work.take((rows,), torch.int32), work.take((rows, width), torch.int32)
    above, kept = (work.take((rows, width), torch.int64) for _ in range(2))
    scores, near = (work.take((rows, CAP), torch.float32) for _ in range(2))
    tokens, others = work.take((rows, CAP), torch.int32), work.take((rows, SAMPLE), torch.float32)
    bounds[(rows,)](
        found, counts, others, best, share, logits, draws, logits.stride(0), vocab, width, chunks,
        CHUNK=CHUNK, ALL=every, SAMPLE=SAMPLE, CAP=CAP, WORDS=WORDS, **options(num_warps=16),
    )  # fmt: skip
    narrow[rows, width // NARROW](
        scores, tokens, counts, above, heads, kept, found, best, logits, draws, logits.stride(0), vocab,
        width, CHUNK=CHUNK, SPAN=NARROW, CAP=CAP, WORDS=WORDS, ONE=one, **options(num_warps=NARROW),
    )  # fmt: skip
    _choose_cut[(rows,)](
        chosen, best, share, logits, draws, logits.stride(0), vocab, width, chunks, scores, near, tokens,
        counts, above, heads, kept, found, CHUNK=CHUNK, ALL=every, WORDS=WORDS, NONE=BROKEN, CAP=CAP,
        TILE=TILE, ONE=one, **options(num_warps=8, maxnreg=128),
    )  # fmt: skip


@kernel
def _survey(
    best, share, logits, draws, stride, vocab, width,
    CHUNK: tl.constexpr, SPAN: tl.constexpr, WORDS: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """Of ``SPAN`` chunks of a row: the best score, NaN if one is, and the sum of exp(score - best)."""
    row, span = tl.program_id(0).to(tl.int64), tl.program_id(1)
    wait(CHAIN)
    go_on(CHAIN)
    draw = draws + row * WORDS
    if tl.load(draw + 3) != 0:
        temperature = tl.load(draw + 4).to(tl.float32, bitcast=True)
        chunk = span * SPAN + tl.arange(0, SPAN)
        at = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
        x = tl.load(logits + row * stride + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
        broken = tl.max((x != x).to(tl.int32), 1) > 0
        if temperature > 0:
            x = scaled(x, temperature)
            top = tl.max(x, 1)
            less = tl.where(x > float("-inf"), x - top[:, None], float("-inf"))
            tl.store(share + row * width + chunk, tl.sum(tl.exp(less).to(tl.float64), 1))
        else:
            top = tl.max(x, 1)
        tl.store(best + row * width + chunk, tl.where(broken, float("nan"), top))


@kernel
def _choose(
    chosen, best, share, logits, draws, stride, vocab, width, chunks, CHUNK: tl.constexpr,
    ALL: tl.constexpr, WORDS: tl.constexpr, NONE: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """The token of a row that is not cut."""
    row = tl.program_id(0).to(tl.int64)
    wait(CHAIN)
    go_on(CHAIN)
    token = _whole(
        best + row * width, share + row * width, logits + row * stride, draws + row * WORDS, vocab, chunks,
        CHUNK, ALL, NONE,
    )  # fmt: skip
    tl.store(chosen + row, token)


@kernel
def _choose_cut(
    chosen, best, share, logits, draws, stride, vocab, width, chunks, scores, near, tokens, counts, above,
    heads, kept, found, CHUNK: tl.constexpr, ALL: tl.constexpr, WORDS: tl.constexpr, NONE: tl.constexpr,
    CAP: tl.constexpr, TILE: tl.constexpr, ONE: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """The token of a row that may be cut."""
    row = tl.program_id(0).to(tl.int64)
    wait(CHAIN)
    go_on(CHAIN)
    draw, of = draws + row * WORDS, row * width
    is_cut, floor, top_p, top_k = cuts_of(draw, vocab)
    token = 0
    if is_cut:
        top, broken = _top(best + of, chunks, ALL)
        if broken:
            token = NONE
        else:
            token = _drawn_cut(
                above + of, heads + of, kept + of, share + of, best + of, found + row * 4,
                scores + row * CAP, near + row * CAP, tokens + row * CAP, tl.load(counts + row),
                logits + row * stride, draw, top, floor, top_p, top_k, vocab, chunks, CHUNK, ALL, CAP, TILE,
                ONE,
            )  # fmt: skip
    else:
        token = _whole(best + of, share + of, logits + row * stride, draw, vocab, chunks, CHUNK, ALL, NONE)
    tl.store(chosen + row, token)


@kernel
def _top(best, chunks, ALL: tl.constexpr):
    """The best score of a row, and whether it has none: a NaN, or nothing finite."""
    each = tl.arange(0, ALL)
    tops = tl.load(best + each, mask=each < chunks, other=float("-inf"))
    top = tl.max(tops, 0)
    return top, (tl.max((tops != tops).to(tl.int32), 0) > 0) | (tl.abs(top) == float("inf"))


@kernel
def _whole(
    best, share, logits, draw, vocab, chunks, CHUNK: tl.constexpr, ALL: tl.constexpr, NONE: tl.constexpr
):
    """The token of a row of which nothing is cut."""
    token = 0
    if tl.load(draw + 3) != 0:
        temperature = tl.load(draw + 4).to(tl.float32, bitcast=True)
        top, broken = _top(best, chunks, ALL)
        each = tl.arange(0, ALL)
        tops = tl.load(best + each, mask=each < chunks, other=float("-inf"))
        if broken:
            token = NONE
        elif temperature > 0:
            part = tl.load(share + each, mask=each < chunks, other=0.0)
            part = tl.where(tops > float("-inf"), part * tl.exp(tops - top).to(tl.float64), 0.0)
            number = uniform(tl.load(draw), tl.load(draw + 1), tl.load(draw + 2))
            token = _drawn(logits, part, top, temperature, number, vocab, CHUNK, ALL)
        else:
            token = _first(logits, tops, top, vocab, CHUNK, ALL)
    return token


@kernel
def _first(logits, tops, top, vocab, CHUNK: tl.constexpr, ALL: tl.constexpr):
    """The first token with the best score."""
    chunk = tl.min(tl.where(tops == top, tl.arange(0, ALL), ALL), 0)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    return tl.min(tl.where(x == top, at, vocab), 0)


@kernel
def _drawn(logits, share, top, temperature, number, vocab, CHUNK: tl.constexpr, ALL: tl.constexpr):
    """The token where the running sum of all weights passes ``number`` of them: its chunk, then it."""
    total = tl.sum(share, 0)
    target = tl.minimum(number * total, total * (1 - 1e-12))
    chunk = tl.sum((tl.cumsum(share, 0) <= target).to(tl.int32), 0)
    before = tl.sum(tl.where(tl.arange(0, ALL) < chunk, share, 0.0), 0)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    upto = tl.cumsum(tl.exp(scaled(x, temperature) - top).to(tl.float64), 0)
    # the two sums differ in their last bits: stay where the chunk has chances
    rest = tl.minimum(tl.maximum(target - before, 0.0), tl.max(upto, 0) * (1 - 1e-12))
    return tl.minimum(chunk * CHUNK + tl.sum((upto <= rest).to(tl.int32), 0), vocab - 1)


@kernel
def _drawn_cut(
    above, heads, kept, share, best, found, scores, near, tokens, count, logits, draw, top, floor, top_p,
    top_k, vocab, chunks, CHUNK: tl.constexpr, ALL: tl.constexpr, CAP: tl.constexpr, TILE: tl.constexpr,
    ONE: tl.constexpr,
):  # fmt: skip
    """The token of a row for what the cuts leave: the cut, what each chunk has from it up, the token."""
    temperature = tl.load(draw + 4).to(tl.float32, bitcast=True)
    lo, hi, least = tl.load(found), tl.load(found + 1), tl.load(found + 3)
    each = tl.arange(0, ALL)
    there = each < chunks
    tops = tl.load(best + each, mask=there, other=float("-inf"))
    part = tl.load(share + each, mask=there, other=0.0)
    whole = tl.sum(tl.where(tops > float("-inf"), part * tl.exp(tops - top).to(tl.float64), 0.0), 0) * ONE
    whole = whole.to(tl.int64)
    if floor > float("-inf"):
        whole = tl.sum(tl.load(kept + each, mask=there, other=0), 0)
    over, many = (
        tl.sum(tl.load(above + each, mask=there, other=0), 0),
        tl.sum(tl.load(heads + each, mask=there, other=0), 0),
    )
    listed = tl.minimum(count, CAP)
    low, fine = cut(
        scores, near, logits, listed, listed >= 0, lo, hi, top, least, over, many, whole, top_p, top_k,
        temperature, CAP, ONE, TILE,
    )  # fmt: skip
    if fine & (count <= CAP):
        for start in range(0, listed, TILE):
            at = start + tl.arange(0, TILE)
            x = tl.load(scores + at, mask=at < listed, other=float("-inf"))
            token = tl.load(tokens + at, mask=at < listed, other=0)
            tl.atomic_add(above + token // CHUNK, weight(x, top, ONE), mask=(at < listed) & (x >= low))
    else:
        low = _cut_all(
            above, scores, near, logits, top, least, top_p, top_k, temperature, vocab, CHUNK, CAP, TILE, ONE
        )
    tl.debug_barrier()
    mass = tl.load(above + each, mask=there, other=0, cache_modifier=".cg")
    total = tl.sum(mass, 0)
    number = uniform(tl.load(draw), tl.load(draw + 1), tl.load(draw + 2))
    target = tl.minimum((number * total.to(tl.float64)).to(tl.int64), total - 1)
    chunk = tl.sum((tl.cumsum(mass, 0) <= target).to(tl.int32), 0)
    rest = target - tl.sum(tl.where(each < chunk, mass, 0), 0)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = scaled(tl.load(logits + at, mask=at < vocab, other=float("-inf")).to(tl.float32), temperature)
    upto = tl.cumsum(tl.where(x >= low, weight(x, top, ONE), 0), 0)
    return tl.minimum(chunk * CHUNK + tl.sum((upto <= rest).to(tl.int32), 0), vocab - 1)


@kernel
def _cut_all(
    above, scores, near, logits, top, least, top_p, top_k, temperature, vocab,
    CHUNK: tl.constexpr, CAP: tl.constexpr, TILE: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """The cut looked for in the row itself; ``above`` gets what each chunk has from it up."""
    whole = weighs(scores, logits, vocab, vocab < 0, temperature, top, least, ONE, TILE)
    none = whole * 0
    low, _ = cut(
        scores, near, logits, vocab, vocab < 0, least, float("inf"), top, least, none, none, whole, top_p,
        top_k, temperature, CAP, ONE, TILE,
    )  # fmt: skip
    PARTS: tl.constexpr = TILE // CHUNK
    for start in range(0, vocab, TILE):
        chunk = start // CHUNK + tl.arange(0, PARTS)
        at = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
        x = tl.load(logits + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
        x = scaled(x, temperature)
        part = tl.sum(tl.where(x >= low, weight(x, top, ONE), 0), 1)
        tl.store(above + chunk, part, mask=chunk * CHUNK < vocab)
    return low
