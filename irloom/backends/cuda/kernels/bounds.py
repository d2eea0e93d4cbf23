"""Between which scores a row's cut will be, from a sample of the row; then what is above them, and a list.

What is below a score is reckoned from the best scores of all chunks, which are known, and from every so many
of the others: of few tokens that weigh much the first know all, of many that weigh little the second enough.
"""

from __future__ import annotations

from .cuts import scaled, weight
from .mode import go_on, kernel, tl, wait

PIVOTS = tl.constexpr(8)
ROUNDS = tl.constexpr(3)
SURE = tl.constexpr(4.0)
"""Standard deviations on both sides."""
LOWEST = tl.constexpr(-3.4028234663852886e38)
"""Of scores that are finite."""
PART = tl.constexpr(512)
"""Scores of the sample that are weighed at a time."""
SLACK = tl.constexpr(0.002)
"""Share of the whole that is left on both sides beside that."""


@kernel
def cuts_of(draw, vocab):
    """Whether a row is cut; its floor, top-p, and top-k, 0 where that is all."""
    temperature = tl.load(draw + 4).to(tl.float32, bitcast=True)
    floor = tl.load(draw + 5).to(tl.float32, bitcast=True)
    top_p = tl.load(draw + 6).to(tl.float32, bitcast=True)
    top_k = tl.load(draw + 7)
    top_k = tl.where(top_k < vocab, top_k, 0)
    any = (floor > float("-inf")) | (top_p < 1) | (top_k > 0)
    return (tl.load(draw + 3) != 0) & (temperature > 0) & any, floor, top_p, top_k


@kernel
def bounds(
    found, counts, others, best, share, logits, draws, stride, vocab, width, chunks, CHUNK: tl.constexpr,
    ALL: tl.constexpr, SAMPLE: tl.constexpr, CAP: tl.constexpr, WORDS: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """``found`` of a row: from which score to which to list; its best one; the floor. Lists are empty.

    ``others`` f32 [rows, SAMPLE] is scratch.
    """
    row = tl.program_id(0).to(tl.int64)
    wait(CHAIN)
    go_on(CHAIN)
    draw, others = draws + row * WORDS, others + row * SAMPLE
    is_cut, floor, top_p, top_k = cuts_of(draw, vocab)
    lo, hi = float("inf") + floor * 0, float("inf") + floor * 0
    top, least = floor * 0, floor * 0
    if is_cut:
        temperature = tl.load(draw + 4).to(tl.float32, bitcast=True)
        each = tl.arange(0, ALL)
        tops = tl.load(best + row * width + each, mask=each < chunks, other=float("-inf"))
        top = tl.max(tops, 0)
        least = top + floor
        lo, hi = least, tl.where((top_p < 1) | (top_k > 0), float("inf"), least)
        if (vocab > CAP) & ((top_p < 1) | (top_k > 0)):
            part = tl.load(share + row * width + each, mask=each < chunks, other=0.0).to(tl.float32)
            part = tl.where(tops > float("-inf"), part * tl.exp(tops - top), 0.0)
            lo, hi = _around(
                others, logits + row * stride, best + row * width, temperature, tops, top, least,
                tl.sum(part, 0), top_p, top_k, vocab, chunks, CHUNK, SAMPLE,
            )  # fmt: skip
    tl.store(found + row * 4, lo)
    tl.store(found + row * 4 + 1, hi)
    tl.store(found + row * 4 + 2, top)
    tl.store(found + row * 4 + 3, least)
    tl.store(counts + row, 0)


@kernel
def _sampled(others, logits, best, temperature, vocab, chunks, CHUNK: tl.constexpr, SAMPLE: tl.constexpr):
    """Put every so many scores that are not their chunk's best into ``others``, NaN for those that are.

    How many scores each stands for.
    """
    at = tl.arange(0, SAMPLE) * (vocab // SAMPLE)
    x = scaled(tl.load(logits + at).to(tl.float32), temperature)
    other = (x < tl.load(best + at // CHUNK)) & (x > float("-inf"))
    tl.store(others + tl.arange(0, SAMPLE), tl.where(other, x, float("nan")))
    tl.debug_barrier()
    return (vocab - chunks) / tl.maximum(tl.sum(other.to(tl.float32), 0), 1.0)


@kernel
def _around(
    others, logits, best, temperature, tops, top, least, whole, top_p, top_k, vocab, chunks,
    CHUNK: tl.constexpr, SAMPLE: tl.constexpr,
):  # fmt: skip
    """The scores between which the cuts surely are, or very likely; ``whole`` is what all scores weigh."""
    one = (tops > float("-inf")).to(tl.float32)
    heavy = one * tl.exp(tops - top)
    few, bottom = tl.sum(one, 0), tl.min(tl.where(one > 0, tops, top), 0)
    start = tl.maximum(least, top + tl.log((1 - top_p) * whole / vocab) - 0.001)
    known = tl.sum(heavy, 0) - top_p * whole * 1.0001
    lo, hi = least, float("inf") + top * 0
    if (top_k > 0) & (top_k <= few):  # the best scores of the chunks alone are as many
        low, high = _between(others, top, tops, one, top, bottom, top, few - top_k, SLACK * 0, False, 0)
        lo = tl.maximum(lo, low)
    elif (top_k == 0) & (known >= 0):  # they weigh enough
        first = tl.maximum(start, bottom)
        low, high = _between(others, top, tops, heavy, top, first, top, known, SLACK * 0, False, 0)
        lo = tl.maximum(lo, low)
    else:
        stands = _sampled(others, logits, best, temperature, vocab, chunks, CHUNK, SAMPLE)
        base = least
        if top_k > 0:  # of the scores turned around the k lowest
            under = tl.minimum(bottom, _lowest(others, SAMPLE))
            low, high = _between(
                others, stands, -tops, one, top, -top, -under, top_k.to(tl.float32), SLACK * 0, True, SAMPLE
            )
            lo = tl.maximum(lo, tl.where(high < -under, -high, least))
            hi = -low
            base = hi
        if top_p < 1:
            under = tl.sum(tl.where(tops < base, heavy, 0.0), 0)
            under += _below(others, stands, base, top, SAMPLE)
            goal = (1 - top_p) * whole + top_p * under
            low, high = _between(
                others, stands, tops, heavy, top, start, top, goal, SLACK * whole, False, SAMPLE
            )
            lo = tl.where(top_k > 0, lo, tl.maximum(lo, low))
            hi = high
    return lo, hi


@kernel
def _between(
    others, stands, tops, heavy, top, low, high, goal, slack, TURNED: tl.constexpr, SAMPLE: tl.constexpr
):
    """Two scores: what is below the first surely weighs at most ``goal``, what is below the second more.

    ``heavy`` is what ``tops`` weigh; ``others`` weigh what they do for ``top``, or all the same where scores
    are ``TURNED`` around. Of no ``SAMPLE`` the first one is certain.
    """
    first, end = low, high
    second, last = low, high
    for _ in range(ROUNDS):
        near, step = _pivots(first, end)
        least = tl.sum(tl.where(tops[:, None] < near[None, :], heavy[:, None], 0.0), 0)
        if SAMPLE:
            far, wide = _pivots(second, last)
            most = tl.sum(tl.where(tops[:, None] < far[None, :], heavy[:, None], 0.0), 0)
            more, less = _weighed(others, stands, top, near, far, TURNED, SAMPLE)
            least += more
            past = tl.sum((most + less <= goal + slack).to(tl.float32), 0)
            second, last = second + wide * past, tl.where(past < PIVOTS, second + wide * (past + 1), last)
        past = tl.sum((least <= goal - slack).to(tl.float32), 0)
        first, end = first + step * past, tl.where(past < PIVOTS, first + step * (past + 1), end)
    return first, last


@kernel
def _pivots(low, high):
    """Scores that cut what is between into equal parts, and how large those are."""
    step = (high - low) / (PIVOTS + 1)
    return low + step * (1 + tl.arange(0, PIVOTS)), step


@kernel
def _weighed(others, stands, top, near, far, TURNED: tl.constexpr, SAMPLE: tl.constexpr):
    """What others below ``near`` weigh at most, and what those below ``far`` weigh at least."""
    held, squares = tl.zeros([PART, PIVOTS], tl.float32), tl.zeros([PART, PIVOTS], tl.float32)
    kept, spread = held, squares
    for start in range(0, SAMPLE, PART):
        x = tl.load(others + start + tl.arange(0, PART))
        mass = tl.where(x == x, stands, 0.0) if TURNED else stands * tl.exp(x - top)
        x = -x if TURNED else x
        part = tl.where(x[:, None] < near[None, :], mass[:, None], 0.0)
        held += part
        squares += part * part
        part = tl.where(x[:, None] < far[None, :], mass[:, None], 0.0)
        kept += part
        spread += part * part
    least = tl.sum(held, 0) + SURE * tl.sqrt(tl.sum(squares, 0))
    return least, tl.sum(kept, 0) - SURE * tl.sqrt(tl.sum(spread, 0))


@kernel
def _below(others, stands, base, top, SAMPLE: tl.constexpr):
    """What all other scores below ``base`` weigh."""
    x = tl.load(others + tl.arange(0, SAMPLE))
    return stands * tl.sum(tl.where(x < base, tl.exp(x - top), 0.0), 0)


@kernel
def _lowest(others, SAMPLE: tl.constexpr):
    """The lowest of the other scores."""
    x = tl.load(others + tl.arange(0, SAMPLE))
    return tl.min(tl.where(x == x, x, float("inf")), 0)


@kernel
def narrow(
    scores, tokens, counts, above, heads, kept, found, best, logits, draws, stride, vocab, width,
    CHUNK: tl.constexpr, SPAN: tl.constexpr, CAP: tl.constexpr, WORDS: tl.constexpr, ONE: tl.constexpr,
    CHAIN: tl.constexpr,
):  # fmt: skip
    """``SPAN`` chunks of a row: what each has above the bounds, how many, and from the floor up; the list."""
    row, span = tl.program_id(0).to(tl.int64), tl.program_id(1)
    wait(CHAIN)
    go_on(CHAIN)
    lo, hi = tl.load(found + row * 4), tl.load(found + row * 4 + 1)
    if lo < float("inf"):
        draw = draws + row * WORDS
        top, least = tl.load(found + row * 4 + 2), tl.load(found + row * 4 + 3)
        _, floor, top_p, top_k = cuts_of(draw, vocab)
        floored = (floor > float("-inf")) & (top_p < 1)
        chunk = span * SPAN + tl.arange(0, SPAN)
        of = row * width + chunk
        over = tl.zeros([SPAN], tl.int64)
        number, all = tl.zeros([SPAN], tl.int32), over
        temperature = tl.load(draw + 4).to(tl.float32, bitcast=True)
        at = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
        x = tl.load(logits + row * stride + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
        if tl.max(tl.load(best + of), 0) >= tl.where(floored, least, lo):
            x = scaled(x, temperature)
            if hi < top:
                over = tl.sum(tl.where(x > hi, weight(x, top, ONE), 0), 1)
                if top_k > 0:
                    number = tl.sum((x > hi).to(tl.int32), 1)
            if floored:
                all = tl.sum(tl.where(x >= least, weight(x, top, ONE), 0), 1)
            here = ((x >= tl.maximum(lo, LOWEST)) & (x <= hi)).to(tl.int32)
            many = tl.sum(here, 1)
            first = tl.atomic_add(counts + row + chunk * 0, many, mask=many > 0)
            place = first[:, None] + tl.cumsum(here, 1) - 1
            fits = (here > 0) & (place < CAP)
            tl.store(scores + row * CAP + place, x, mask=fits)
            tl.store(tokens + row * CAP + place, at, mask=fits)
        tl.store(above + of, over)
        tl.store(heads + of, number)
        tl.store(kept + of, all)
