"""Drawing from a row of scores that top-k, top-p or min-p cut, without sorting it, in two reads of it.

A cut is a score: the highest from which up the scores still are k, or still weigh so much. ``bounds`` says
from a sample of the row where it will be; ``narrow`` goes over the row once, sums what is above and lists
what is between; then the cut is among the few in the list. Where it is not after all, or the list is full,
the row itself is gone through, over and over: so the sample decides how long it takes, never what is chosen.

Scores are compared as whole numbers in the same order (``key``), and weigh whole numbers (``weight``): their
sums are the same in whatever order they are added.
"""

from __future__ import annotations

from .mode import kernel, tl

PIVOTS = tl.constexpr(8)


@kernel
def scaled(x, temperature):
    """Scores as the runtime rounds them."""
    if temperature != 1.0:
        x = tl.div_rn(x, temperature + tl.zeros_like(x))
    return x


@kernel
def weight(x, top, ONE: tl.constexpr):
    """exp(x - top) as i64 in units of 1 / ``ONE``, so small that a whole vocabulary fits."""
    return (tl.where(x > float("-inf"), tl.exp(x - top), 0.0) * ONE).to(tl.int64)


@kernel
def cut(
    scores, near, logits, count, listed, lo, hi, top, least, above, heads, whole, top_p, top_k, temperature,
    CAP: tl.constexpr, ONE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The lowest score that is left, and whether it is surely that: all near it were among the ``count``.

    Scores are those ``listed``, from ``lo`` to ``hi``, or all of the row. ``above`` is what scores past
    ``hi`` weigh, ``heads`` how many they are; ``whole`` what those from ``least`` up weigh.
    """
    low, high = key(tl.maximum(lo, least)), key(tl.minimum(hi, top))
    everything = lo <= least
    fine = high >= low
    goal = whole.to(tl.float64) * top_p.to(tl.float64)
    if top_k > 0:
        more = top_k - heads
        low, there = among(
            scores, near, logits, count, listed, temperature, top, low, high, more, True, CAP, ONE,
            TILE,
        )  # fmt: skip
        fine = fine & (more > 0) & (everything | (there >= more))
        least = tl.maximum(least, score(low))
        left = weighs(scores, logits, count, listed, temperature, top, least, ONE, TILE)
        goal = (above + left).to(tl.float64) * top_p.to(tl.float64)
    if top_p < 1:
        more = tl.ceil(goal).to(tl.int64) - above
        low, there = among(
            scores, near, logits, count, listed, temperature, top, low, high, more, False, CAP, ONE,
            TILE,
        )  # fmt: skip
        fine = fine & (more > 0) & (everything | (there >= more))
        least = tl.maximum(least, score(low))
    return least, fine


@kernel
def among(
    scores, near, logits, count, listed, temperature, top, low, high, goal,
    COUNTS: tl.constexpr, CAP: tl.constexpr, ONE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The highest key, of ``low`` to ``high``, from which up scores weigh ``goal``, ``low`` if none do.

    And what those from ``low`` up weigh. With ``COUNTS`` each weighs 1. ``near`` is scratch for the scores
    that are still in question, once they are at most ``CAP``.
    """
    held = tl.zeros([TILE], tl.int64)
    for start in range(0, count, TILE):
        x = tile(scores, logits, listed, start, count, temperature, TILE)
        held += tl.where(key(x) >= low, _each(x, top, COUNTS, ONE), 0)
    there, past = tl.sum(held, 0), tl.sum(held, 0) * 0
    while low < high:
        step = (high - low) // (PIVOTS + 1) + 1
        pivots = tl.minimum(low + step * (1 + tl.arange(0, PIVOTS)), high)
        sums = tl.zeros([TILE, PIVOTS], tl.int64)
        for start in range(0, count, TILE):
            x = tile(scores, logits, listed, start, count, temperature, TILE)
            sums += tl.where(key(x)[:, None] >= pivots[None, :], _each(x, top, COUNTS, ONE)[:, None], 0)
        enough = tl.sum((past + tl.sum(sums, 0) >= goal).to(tl.int64), 0)
        low, high = tl.minimum(low + step * enough, high), tl.minimum(low + step * (enough + 1) - 1, high)
        if count > TILE:
            left, over = _kept(
                scores, near, logits, count, listed, temperature, top, low, high, COUNTS, CAP, ONE, TILE
            )
            if left <= CAP:
                past += over
                scores, count, listed = near, left, listed | True
    return low, there


@kernel
def _kept(
    scores, near, logits, count, listed, temperature, top, low, high,
    COUNTS: tl.constexpr, CAP: tl.constexpr, ONE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Put the scores from ``low`` to ``high`` into ``near``, which may be where they are.

    How many they are, and what those past ``high`` weigh.
    """
    left = count * 0
    held = tl.zeros([TILE], tl.int64)
    for start in range(0, count, TILE):
        x = tile(scores, logits, listed, start, count, temperature, TILE)
        inside = (key(x) >= low) & (key(x) <= high) & (x > float("-inf"))
        held += tl.where(key(x) > high, _each(x, top, COUNTS, ONE), 0)
        place = left + tl.cumsum(inside.to(tl.int32), 0) - 1
        tl.debug_barrier()
        tl.store(near + place, x, mask=inside & (place < CAP))
        left += tl.sum(inside.to(tl.int32), 0)
    tl.debug_barrier()
    return left, tl.sum(held, 0)


@kernel
def _each(x, top, COUNTS: tl.constexpr, ONE: tl.constexpr):
    """What scores weigh, or 1."""
    return (x > float("-inf")).to(tl.int64) if COUNTS else weight(x, top, ONE)


@kernel
def weighs(scores, logits, count, listed, temperature, top, least, ONE: tl.constexpr, TILE: tl.constexpr):
    """All scores from ``least`` up."""
    held = tl.zeros([TILE], tl.int64)
    for start in range(0, count, TILE):
        x = tile(scores, logits, listed, start, count, temperature, TILE)
        held += tl.where(x >= least, weight(x, top, ONE), 0)
    return tl.sum(held, 0)


@kernel
def tile(scores, logits, listed, start, count, temperature, TILE: tl.constexpr):
    """Scores from ``start`` on, of the list or of the row itself; -inf behind the last."""
    at = start + tl.arange(0, TILE)
    if listed:
        x = tl.load(scores + at, mask=at < count, other=float("-inf"))
    else:
        x = scaled(tl.load(logits + at, mask=at < count, other=float("-inf")).to(tl.float32), temperature)
    return x


@kernel
def key(x):
    """i64 in the order of f32."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@kernel
def score(key):
    """The f32 of a key."""
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
