"""Which experts each token goes to."""

from __future__ import annotations

from typing import Any

import torch

from irloom.backends.cuda.alike import alike
from irloom.backends.cuda.step import Step, real_rows

from .choose import LAST, largest, order_keys
from .curves import softplus
from .mode import go_on, kernel, options, rounded, tl, triton, wait

RANKED = tl.constexpr(128)
"""Experts up to which each one's rank is counted at once; the largest of more are found one by one."""
CROWD = 1024
"""Tokens from which the largest are found so however few experts there are: it is less to do, if slower."""


def route(
    weights: torch.Tensor,
    index: torch.Tensor,
    logits: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    k: int,
    score: str = "softmax",
    by_logits: bool = False,
    groups: int = 1,
    top_groups: int = 1,
    best: int = 1,
    normalize: bool = False,
    scale: float = 1.0,
    step: Step | None = None,
) -> None:
    """The op ``route`` for ``logits`` [t, e]: ``weights`` [t, k] in their element, ``index`` i32 [t, k].

    Rows that only fill the bucket of ``step`` go to no expert: index -1, weight 0. Of equal scores the one of
    the smaller number comes first. A row with NaN gives weights of NaN.
    """
    rows, experts = logits.shape
    per = experts // groups
    room = triton.next_power_of_2(groups) * triton.next_power_of_2(per)
    ranked = room <= RANKED.value and (rows < CROWD or alike())
    warps = 4 if ranked and room > 32 else max(1, min(8, room // 256))
    _route[(rows,)](
        weights, index, logits, bias, real_rows(step, rows), logits.stride(0), scale,
        GROUPS=groups, PER=per, K=k, SCORE=score, BY_LOGITS=by_logits, TOP=top_groups, BEST=best,
        NORMALIZE=normalize, CROWDED=not ranked, **options(num_warps=warps),
    )  # fmt: skip


def choice(experts: int, **attrs: Any) -> dict[str, Any]:
    """What ``choose_experts`` is compiled for, but for crowds: ``attrs`` of the op ``route``."""
    groups = attrs.get("groups", 1)
    return {
        "GROUPS": groups, "PER": experts // groups, "K": attrs["k"], "SCORE": attrs.get("score", "softmax"),
        "BY_LOGITS": attrs.get("by_logits", False), "TOP": attrs.get("top_groups", 1),
        "BEST": attrs.get("best", 1), "NORMALIZE": attrs.get("normalize", False),
    }  # fmt: skip


@kernel
def _route(
    weights, index, logits, bias, real, stride, scale,
    GROUPS: tl.constexpr, PER: tl.constexpr, K: tl.constexpr, SCORE: tl.constexpr, BY_LOGITS: tl.constexpr,
    TOP: tl.constexpr, BEST: tl.constexpr, NORMALIZE: tl.constexpr, CROWDED: tl.constexpr,
    CHAIN: tl.constexpr,
):  # fmt: skip
    """A program per token."""
    row = tl.program_id(0)
    wait(CHAIN)
    go_on(CHAIN)
    expert, there = places(GROUPS, PER)
    x = tl.load(logits + row.to(tl.int64) * stride + expert, there, float("-inf")).to(tl.float32)
    choose_experts(
        weights, index, x, bias, real, row, scale,
        GROUPS, PER, K, SCORE, BY_LOGITS, TOP, BEST, NORMALIZE, CROWDED,
    )  # fmt: skip


@kernel
def choose_experts(
    weights, index, x, bias, real, row, scale,
    GROUPS: tl.constexpr, PER: tl.constexpr, K: tl.constexpr, SCORE: tl.constexpr, BY_LOGITS: tl.constexpr,
    TOP: tl.constexpr, BEST: tl.constexpr, NORMALIZE: tl.constexpr, CROWDED: tl.constexpr,
):  # fmt: skip
    """Write where ``row`` goes, whose logits are ``x``, as ``places`` has them."""
    G: tl.constexpr = triton.next_power_of_2(GROUPS)
    P: tl.constexpr = triton.next_power_of_2(PER)
    ROOM: tl.constexpr = triton.next_power_of_2(K)
    expert, there = places(GROUPS, PER)
    x = tl.where(there, x, float("-inf"))
    scores = _score(x, there, SCORE)
    by = x if BY_LOGITS else scores
    if bias is not None:
        by = by + tl.load(bias + expert, there, 0.0).to(tl.float32)
    by = tl.where(there, by, float("-inf"))
    group, at = tl.arange(0, G)[:, None], tl.arange(0, P)[None, :]
    place = tl.where(there, expert, GROUPS * PER + group * P + at)
    keys = order_keys(by, place)
    if GROUPS > 1:
        kept = _best_groups(by, keys, there, G, TOP, BEST)
        keys = tl.where(kept[:, None], keys, LAST)
    keys, place = tl.reshape(keys, [G * P]), tl.reshape(place, [G * P])
    scores = tl.reshape(scores, [G * P])
    mine = True
    if real is not None:
        mine = row < tl.load(real)
    if G * P <= RANKED and not CROWDED:
        rank = tl.sum((keys[:, None] > keys[None, :]).to(tl.int32), 0)  # lanes have columns: a sum of its own
        made, chosen = tl.where(rank < K, scores, 0.0), place
    else:
        rank, chosen = tl.arange(0, ROOM), largest(keys, K, ROOM)
        made = tl.sum(tl.where(place[:, None] == chosen[None, :], scores[:, None], 0.0), 0)
    if NORMALIZE:
        made = made / tl.maximum(tl.sum(made, 0), 1e-20)
    made = tl.where(mine, made * scale, 0.0)
    tl.store(index + row * K + rank, tl.where(mine, chosen, -1), rank < K)
    tl.store(weights + row * K + rank, rounded(made, weights.dtype.element_ty), rank < K)


@kernel
def places(GROUPS: tl.constexpr, PER: tl.constexpr):
    """Which expert each entry of [groups, experts of a group] is, both filled up to powers of two; and which
    are there.
    """
    group = tl.arange(0, triton.next_power_of_2(GROUPS))[:, None]
    at = tl.arange(0, triton.next_power_of_2(PER))[None, :]
    return group * PER + at, (group < GROUPS) & (at < PER)


@kernel
def _score(x, there, SCORE: tl.constexpr):
    """What a router makes of its logits, as ``SCORES`` of the op has it."""
    if SCORE == "softmax":
        top = tl.max(tl.max(x, 1), 0)
        parts = tl.where(there, tl.exp(x - top), 0.0)
        return parts / tl.sum(tl.sum(parts, 1), 0)
    elif SCORE == "sigmoid":
        return 1 / (1 + tl.exp(-x))
    else:
        tl.static_assert(SCORE == "sqrt_softplus")
        return tl.sqrt(softplus(x))


@kernel
def _best_groups(by, keys, there, G: tl.constexpr, TOP: tl.constexpr, BEST: tl.constexpr):
    """Whether each group is one of the ``TOP`` whose ``BEST`` largest entries have the largest sum: [G]."""
    total = tl.zeros([G], tl.float32)
    for _ in tl.static_range(BEST):
        first = tl.max(keys, 1)
        total += tl.sum(tl.where(keys == first[:, None], by, 0.0), 1)
        keys = tl.where(keys == first[:, None], LAST, keys)
    real = tl.max(there.to(tl.int32), 1) > 0
    group = tl.arange(0, G)
    ahead = order_keys(tl.where(real, total, float("-inf")), tl.where(real, group, G + group))
    kept = tl.zeros([G], tl.int1)
    for _ in tl.static_range(TOP):
        first = tl.max(ahead, 0)
        kept = kept | (ahead == first)
        ahead = tl.where(ahead == first, LAST, ahead)
    return kept
