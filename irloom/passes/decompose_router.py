"""``decompose`` for routers: scores, the largest of them, and their weights."""

from __future__ import annotations

from collections.abc import Callable

from irloom.ir.dims import divide
from irloom.ir.graph import Value
from irloom.ir.ops import (
    add,
    div,
    full,
    gather,
    maximum,
    mul,
    reshape,
    route,
    scatter,
    sigmoid,
    softmax,
    softplus,
    sqrt,
    sum_,
    topk,
)

from .rewrite import Rewrite
from .wide import F32, in_f32, to_elem

SCORES: dict[str, Callable[[Value], Value]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "sqrt_softplus": lambda x: sqrt(softplus(x)),
}


class Route(Rewrite):
    """Scores in f32, ``topk``, and the scores of what was chosen."""

    def match(
        self, logits: Value, bias: Value | None, *, k: int, score: str, by_logits: bool,
        groups: int, top_groups: int, best: int, normalize: bool, scale: float,
    ) -> tuple[Value, Value]:  # fmt: skip
        return route(
            logits, bias, k=k, score=score, by_logits=by_logits, groups=groups, top_groups=top_groups,
            best=best, normalize=normalize, scale=scale,
        )  # fmt: skip

    def replace(
        self, logits: Value, bias: Value | None, k: int, score: str, by_logits: bool,
        groups: int, top_groups: int, best: int, normalize: bool, scale: float,
    ) -> tuple[Value, Value]:  # fmt: skip
        x = in_f32(logits)
        scores = SCORES[score](x)
        by = x if by_logits else scores
        by = by if bias is None else add(by, in_f32(bias))
        weights, index = topk(_limited(by, groups, top_groups, best), k=k)
        if by_logits or bias is not None:
            weights = gather(scores, index)
        if normalize:
            weights = div(weights, maximum(sum_(weights), 1e-20))
        weights = weights if scale == 1 else mul(weights, scale)
        return to_elem(weights, logits.type.plain), index


def _limited(by: Value, groups: int, top_groups: int, best: int) -> Value:
    """Scores with -inf outside of a token's ``top_groups`` groups, by the sum of their ``best`` first."""
    if groups == 1:
        return by
    tokens, experts = by.type.dims
    parts = reshape(by, dims=(tokens, groups, divide(experts, groups)))
    firsts, _ = topk(parts, k=best)
    _, kept = topk(sum_(firsts, keep=False), k=top_groups)
    shut = full(dims=(tokens, groups), value=float("-inf"), elem=F32)
    open_ = reshape(scatter(shut, kept, 0.0), dims=(tokens, groups, 1))
    return reshape(add(parts, open_), dims=by.type.dims)


ROUTER_RULES = (Route(),)
