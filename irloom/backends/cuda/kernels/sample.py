"""Tokens from logits, in the graph: greedy, or drawn after temperature, min-p, top-k and top-p.

The same tokens as ``runtime.sampler``, which says what the rules are. Random numbers come from the rows'
seeds and positions. Nothing is sorted: a first kernel goes over all logits once and leaves, for each
``CHUNK`` of them, the best score and what the scores weigh; a second finds each row's chunk from those, then
its token in it. Only rows with top-k, top-p or min-p look at the logits again: see ``cuts``.

A row's result does not depend on other rows, nor on how many there are.
"""

from __future__ import annotations

import torch

from irloom.backends.cuda.work import Workspace
from irloom.runtime.core import BROKEN, DRAW

from .cuts import drawn, gather, lowest, scaled
from .mode import go_on, kernel, options, tl, triton, wait
from .uniform import uniform

CHUNK = 256
"""Logits whose sum is kept: a warp reads so many at a time."""
SPAN = 16
"""Chunks of one program of the first kernel."""
TILE = 1024
"""Scores that the second kernel holds at a time when it cuts."""
CAP = 4096
"""Scores of a row that are gathered where it is cut; where more may be left, it is read over and over."""
WORDS = DRAW.itemsize // 4


def sample(chosen: torch.Tensor, logits: torch.Tensor, draws: torch.Tensor, *, work: Workspace) -> None:
    """Choose ``chosen`` i32 [S], from ``logits`` [S, V] as ``draws`` i32 [S, 8] say (``runtime.core.DRAW``).

    ``BROKEN`` where logits are NaN, or the best is not finite; 0 for rows that ask for nothing.
    """
    rows, vocab = logits.shape
    chunks = -(-vocab // CHUNK)
    spans = -(-chunks // SPAN)
    best = work.take((rows, spans * SPAN), torch.float32)
    weight = work.take((rows, spans * SPAN), torch.float64)
    scores = work.take((rows, CAP), torch.float32)
    tokens = work.take((rows, CAP), torch.int32)
    _survey[rows, spans](
        best, weight, logits, draws, logits.stride(0), vocab, spans * SPAN,
        CHUNK=CHUNK, SPAN=SPAN, WORDS=WORDS, **options(num_warps=4),
    )  # fmt: skip
    _choose[(rows,)](
        chosen, best, weight, scores, tokens, logits, draws, logits.stride(0), vocab, spans * SPAN, chunks,
        CHUNK=CHUNK, SPAN=SPAN, CAP=CAP, ALL=triton.next_power_of_2(chunks), TILE=TILE, WORDS=WORDS,
        NONE=BROKEN, **options(num_warps=8),
    )  # fmt: skip


@kernel
def _survey(
    best, weight, logits, draws, stride, vocab, width,
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
            tl.store(weight + row * width + chunk, tl.sum(tl.exp(less).to(tl.float64), 1))
        else:
            top = tl.max(x, 1)
        tl.store(best + row * width + chunk, tl.where(broken, float("nan"), top))


@kernel
def _choose(
    chosen, best, weight, scores, tokens, logits, draws, stride, vocab, width, chunks,
    CHUNK: tl.constexpr, SPAN: tl.constexpr, CAP: tl.constexpr, ALL: tl.constexpr, TILE: tl.constexpr,
    WORDS: tl.constexpr, NONE: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """The token of a row."""
    row = tl.program_id(0).to(tl.int64)
    wait(CHAIN)
    go_on(CHAIN)
    draw = draws + row * WORDS
    token = 0
    if tl.load(draw + 3) != 0:
        temperature = tl.load(draw + 4).to(tl.float32, bitcast=True)
        logits += row * stride
        each = tl.arange(0, ALL)
        tops = tl.load(best + row * width + each, mask=each < chunks, other=float("-inf"))
        broken = tl.max((tops != tops).to(tl.int32), 0) > 0
        top = tl.max(tops, 0)
        if broken | (tl.abs(top) == float("inf")):
            token = NONE
        elif temperature > 0:
            share = tl.load(weight + row * width + each, mask=each < chunks, other=0.0)
            share = tl.where(tops > float("-inf"), share * tl.exp(tops - top).to(tl.float64), 0.0)
            number = uniform(tl.load(draw), tl.load(draw + 1), tl.load(draw + 2))
            floor = tl.load(draw + 5).to(tl.float32, bitcast=True)
            top_p = tl.load(draw + 6).to(tl.float32, bitcast=True)
            top_k = tl.load(draw + 7)
            top_k = tl.where(top_k < vocab, top_k, 0)
            if (floor > float("-inf")) | (top_p < 1) | (top_k > 0):
                scores += row * CAP
                tokens += row * CAP
                low = lowest(tops, share, top, floor, top_p, top_k, vocab, ALL)
                count = gather(
                    scores,
                    tokens,
                    logits,
                    best + row * width,
                    low,
                    temperature,
                    vocab,
                    width,
                    CAP,
                    CHUNK,
                    SPAN,
                )
                token = drawn(
                    scores, tokens, logits, count, share, top, low, floor, top_p, top_k, number, temperature,
                    vocab, CAP, TILE,
                )  # fmt: skip
            else:
                token = _drawn(logits, share, top, temperature, number, vocab, CHUNK, ALL)
        else:
            token = _first(logits, tops, top, vocab, CHUNK, ALL)
    tl.store(chosen + row, token)


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
