"""What top-k, top-p and min-p leave of a row of scores, without sorting it.

A cut is a score: the highest from which up the scores still are k, or still weigh so much. It is looked for
among the scores that may be left, which are few as a rule: a bound comes from the best scores of all chunks,
and those from it up are gathered. Where they are more than ``CAP`` the row itself is gone through instead.

Scores are compared as whole numbers in the same order (``_key``), ``PIVOTS`` at a time.
"""

from __future__ import annotations

from .mode import kernel, tl

PIVOTS = tl.constexpr(8)


@kernel
def lowest(tops, share, top, floor, top_p, top_k, vocab, ALL: tl.constexpr):
    """A score that nothing is left below, from the best scores ``tops`` of all chunks and their ``share``."""
    low = top + floor
    key = _key(tops)
    one = tl.where(tops > float("-inf"), 1.0, 0.0).to(tl.float64)
    if top_k > 0:
        if tl.sum(one, 0) >= top_k:
            low = tl.maximum(low, _score(_highest(key, one, tl.min(key, 0), _key(top), top_k, ALL)))
    elif floor == float("-inf"):
        whole = tl.sum(share, 0)
        goal = whole * top_p.to(tl.float64) * (1 + 1e-9)
        weight = one * tl.exp(tops - top).to(tl.float64)
        if tl.sum(weight, 0) >= goal:
            low = _score(_highest(key, weight, tl.min(key, 0), _key(top), goal, ALL))
        else:  # so little is below that the rest is enough, if every score were there
            less = (1 - top_p.to(tl.float64)) * whole / vocab
            low = top + tl.log(less.to(tl.float32)) - 0.001
    return low


@kernel
def gather(
    scores, tokens, logits, best, low, temperature, vocab, width,
    CAP: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Put the scores from ``low`` up side by side, and their tokens; how many there are, or more than fit."""
    count = 0
    for span in range(width // SPAN):
        tops = tl.load(best + span * SPAN + tl.arange(0, SPAN))
        if (tl.max(tops, 0) >= low) & (count <= CAP):
            at = span * SPAN * CHUNK + tl.arange(0, SPAN * CHUNK)
            x = tl.load(logits + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
            x = scaled(x, temperature)
            kept = ((x >= low) & (x > float("-inf"))).to(tl.int32)
            place = count + tl.cumsum(kept, 0) - 1
            fits = (kept > 0) & (place < CAP)
            tl.store(scores + place, x, mask=fits)
            tl.store(tokens + place, at, mask=fits)
            count += tl.sum(kept, 0)
    tl.debug_barrier()
    return count


@kernel
def drawn(
    scores, tokens, logits, count, share, top, low, floor, top_p, top_k, number, temperature, vocab,
    CAP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The token of a row for ``number`` in (0, 1), of those the cuts leave; ``gather`` found ``count``."""
    whole = count > CAP
    count = tl.where(whole, vocab, count)
    x = _tile(scores, logits, whole, 0, count, temperature, TILE)
    key, weight = _key(x), _weight(x, top)
    least, high = top + floor, _key(top)
    if top_k > 0:
        one = (x > float("-inf")).to(tl.float64)
        first = _key(tl.maximum(low, float("-inf")))
        cut = _among(key, one, scores, logits, whole, count, temperature, top, first, high, top_k, True, TILE)
        least = tl.maximum(least, _score(cut))
    if top_p < 1:
        goal = tl.sum(share, 0)
        if (top_k > 0) | (floor > float("-inf")):
            goal = _weighs(scores, logits, whole, count, temperature, top, least, TILE)
        goal *= top_p.to(tl.float64)
        first = _key(tl.maximum(low, least))
        cut = _among(
            key, weight, scores, logits, whole, count, temperature, top, first, high, goal, False, TILE
        )
        least = tl.maximum(least, _score(cut))
    total = _weighs(scores, logits, whole, count, temperature, top, least, TILE)
    target = tl.minimum(number * total, total * (1 - 1e-12))
    place, before = 0, tl.zeros([], tl.float64)
    for start in range(0, count, TILE):
        x = _tile(scores, logits, whole, start, count, temperature, TILE)
        weight = tl.where(x >= least, _weight(x, top), 0.0)
        passed = (before + tl.cumsum(weight, 0) <= target) & (start + tl.arange(0, TILE) < count)
        place += tl.sum(passed.to(tl.int32), 0)
        before += tl.sum(weight, 0)
    place = tl.minimum(place, count - 1)
    if not whole:
        place = tl.load(tokens + place)
    return place


@kernel
def scaled(x, temperature):
    """Scores as the runtime rounds them."""
    if temperature != 1.0:
        x = tl.div_rn(x, temperature + tl.zeros_like(x))
    return x


@kernel
def _tile(scores, logits, whole, start, count, temperature, TILE: tl.constexpr):
    """The scores from ``start`` on; -inf behind the last."""
    at = start + tl.arange(0, TILE)
    if whole:
        x = scaled(tl.load(logits + at, mask=at < count, other=float("-inf")).to(tl.float32), temperature)
    else:
        x = tl.load(scores + at, mask=at < count, other=float("-inf"))
    return x


@kernel
def _weight(x, top):
    """Of scores, in f64."""
    return tl.where(x > float("-inf"), tl.exp(x - top), 0.0).to(tl.float64)


@kernel
def _weighs(scores, logits, whole, count, temperature, top, least, TILE: tl.constexpr):
    """All scores from ``least`` up."""
    total = tl.zeros([], tl.float64)
    for start in range(0, count, TILE):
        x = _tile(scores, logits, whole, start, count, temperature, TILE)
        total += tl.sum(tl.where(x >= least, _weight(x, top), 0.0), 0)
    return total


@kernel
def _among(
    key, weight, scores, logits, whole, count, temperature, top, low, high, goal,
    COUNTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The highest key, of ``low`` to ``high``, from which up all scores weigh ``goal``; ``low`` if none do.

    ``key`` and ``weight`` are those of the first tile: as a rule there is no other.
    """
    while low < high:
        pivots, step = _pivots(low, high)
        weighs = tl.sum(tl.where(key[:, None] >= pivots[None, :], weight[:, None], 0.0), 0)
        for start in range(TILE, count, TILE):
            x = _tile(scores, logits, whole, start, count, temperature, TILE)
            more = (x > float("-inf")).to(tl.float64) if COUNTS else _weight(x, top)
            weighs += tl.sum(tl.where(_key(x)[:, None] >= pivots[None, :], more[:, None], 0.0), 0)
        low, high = _narrowed(low, high, step, weighs >= goal)
    return low


@kernel
def _highest(key, weight, low, high, goal, SIZE: tl.constexpr):
    """``_among`` of one tile."""
    while low < high:
        pivots, step = _pivots(low, high)
        weighs = tl.sum(tl.where(key[:, None] >= pivots[None, :], weight[:, None], 0.0), 0)
        low, high = _narrowed(low, high, step, weighs >= goal)
    return low


@kernel
def _pivots(low, high):
    """Keys that cut what is above ``low`` into equal parts, and how large those are."""
    step = (high - low) // (PIVOTS + 1) + 1
    return tl.minimum(low + step * (1 + tl.arange(0, PIVOTS)), high), step


@kernel
def _narrowed(low, high, step, enough):
    """The part that the key is in: behind the last pivot with ``enough``."""
    past = tl.sum(enough.to(tl.int64), 0)
    return tl.minimum(low + step * past, high), tl.minimum(low + step * (past + 1) - 1, high)


@kernel
def _key(x):
    """i64 in the order of f32."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@kernel
def _score(key):
    """The f32 of a key."""
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
