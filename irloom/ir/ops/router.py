"""Which experts a token goes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..elem import ELEMS, AnyElem
from ..errors import IRError
from ..op import Attrs, op
from ..signature import Operand
from ..types import Type

SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(-1),
    "sigmoid": torch.sigmoid,
    "sqrt_softplus": lambda x: F.softplus(x).sqrt(),
}
"""What a router makes of its logits, by its name."""


@op("t !e, !e? -> t k, t k")
def route(
    logits: Tensor,
    bias: Tensor | None = None,
    *,
    k: int,
    score: str = "softmax",
    by_logits: bool = False,
    groups: int = 1,
    top_groups: int = 1,
    best: int = 1,
    normalize: bool = False,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The weights and the numbers of the ``k`` experts that a token chooses, by score: largest first.

    ``bias`` is added to the scores for choosing alone (with ``by_logits`` to the logits): it balances load.
    With ``groups`` a token chooses from ``top_groups`` of them, those whose ``best`` first experts have the
    largest sum (Liu et al., 2024). The weights are the scores, over their sum with ``normalize``, times
    ``scale``. A softmax over the chosen alone is a normalized softmax over all.
    """
    scores = SCORES[score](logits.float())
    by = logits.float() if by_logits else scores
    by = by if bias is None else by + bias.float()
    if groups > 1:
        parts = by.reshape(len(by), groups, -1)
        kept = parts.topk(best).values.sum(-1).topk(top_groups).indices
        mask = torch.ones(len(by), groups, dtype=torch.bool, device=by.device).scatter(1, kept, False)
        by = parts.masked_fill(mask[:, :, None], float("-inf")).flatten(1)
    index = by.topk(k).indices
    weights = scores.gather(-1, index)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-20)
    return (weights * scale).to(logits.dtype), index.int()


@route.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    if attrs["score"] not in SCORES:
        raise IRError(f"route: score is {attrs['score']!r}", hint=f"one of {', '.join(SCORES)}")
    x = operands[0]
    k, groups, top, best = (attrs[name] for name in ("k", "groups", "top_groups", "best"))
    assert isinstance(k, int) and isinstance(groups, int) and isinstance(top, int) and isinstance(best, int)
    e = x.dims[-1] if isinstance(x, Type) and x.dims else None
    if not isinstance(e, int):
        return
    if groups < 1 or e % groups or not 1 <= top <= groups or not 1 <= best <= e // groups:
        raise IRError(f"route: {top} of {groups} groups by their {best} best of the {e} experts of {x}")
    if not 1 <= k <= e // groups * top:
        raise IRError(f"route: {k} of {e // groups * top} experts", hint="as many as may be chosen, or fewer")


@route.dtype
def _(operands: Sequence[Operand], attrs: Attrs) -> tuple[AnyElem, ...]:
    x = operands[0]
    assert isinstance(x, Type)
    return x.elem, ELEMS["i32"]
