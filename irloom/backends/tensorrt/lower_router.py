"""Lowering of routers: which experts a token goes to."""

from __future__ import annotations

from irloom.ir.elem import ELEMS

from .context import Context, lowers
from .layers.elementwise import Select
from .layers.fill import Linspace
from .layers.index import GatherElements
from .layers.reduce import Reduce, Softmax, TopK
from .network import Tensor

F32, I32 = ELEMS["f32"], ELEMS["i32"]


@lowers("route")
def route(c: Context) -> tuple[Tensor, Tensor]:
    logits = c.cast(c["logits"], F32)
    scores = _scores(c, logits)
    by = logits if c.attr("by_logits") else scores
    if c.has("bias"):
        by = c.binary("sum", by, c.cast(c["bias"], F32))
    if c.attr("groups") > 1:
        by = _of_best_groups(c, by)
    _, index = c.all(TopK("max", by, c.attr("k")))
    weights = c.add(GatherElements(scores, index, -1))
    if c.attr("normalize"):
        total = c.add(Reduce("sum", weights, (-1,)))
        weights = c.binary("div", weights, c.binary("max", total, 1e-20))
    if c.attr("scale") != 1.0:
        weights = c.binary("prod", weights, c.attr("scale"))
    return c.cast(weights, c["logits"].elem), index


def routed(c: Context) -> bool:
    """Whether operand ``index`` is what a router chose, or the largest of some: a token's choices are experts
    that there are, and differ.
    """
    index = c.arg("index")
    makers = (n for n in c.to.module.main.nodes if index in n.results)
    return any(n.op.name in ("route", "topk") for n in makers)


def _scores(c: Context, logits: Tensor) -> Tensor:
    match c.attr("score"):
        case "softmax":
            return c.add(Softmax(logits))
        case "sigmoid":
            return c.activation("sigmoid", logits)
        case _:
            return c.unary("sqrt", c.activation("softplus", logits, 1.0, 1.0))


def _of_best_groups(c: Context, by: Tensor) -> Tensor:
    """``by`` [T, E], -inf outside of the groups whose first experts have the largest sum."""
    rows, experts = by.dims
    groups = c.attr("groups")
    assert isinstance(experts, int)
    parts = c.reshape(by, (rows, groups, experts // groups))
    best = c.add(Reduce("sum", c.add(TopK("max", parts, c.attr("best"))), (2,), keep=False))
    _, kept = c.all(TopK("max", best, c.attr("top_groups")))
    numbers = c.add(Linspace(I32, (1, 1, groups), 0, (0, 0, 1)))
    hits = c.cast(c.binary("equal", c.reshape(kept, (*kept.dims, 1)), numbers), I32)
    chosen = c.binary("greater", c.add(Reduce("max", hits, (1,), keep=False)), 0)
    of_group = c.reshape(chosen, (rows, groups, 1))
    return c.reshape(c.add(Select(of_group, parts, c.number(float("-inf"), F32, 3))), by.dims)
