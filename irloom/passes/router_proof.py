"""Whether a region is a router: on random logits it chooses and weighs as ``route`` does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from irloom.ir import ops
from irloom.ir.graph import Value
from irloom.ir.ops.router import SCORES

from .region import Consts, Region, is_const

TOKENS = 128
TOLERANCE = 1e-4


Form = dict[str, Any]
"""The attributes of a ``route``."""


def biases_of(region: Region) -> list[Value]:
    """What a region reads beside logits and constants: of a router one bias, or none."""
    return [v for v in region.leaves if not is_const(v)]


def prove(region: Region, consts: Consts) -> Form | None:
    """The ``route`` that gives weights and numbers of experts from logits; None if none of the forms does."""
    index, logits = region.ends[1], region.start.type
    experts, k = logits.dims[-1], index.type.dims[-1]
    biases = biases_of(region)
    if logits.rank != 2 or not isinstance(experts, int) or not isinstance(k, int) or len(biases) > 1:
        return None
    if index.type.dims != (logits.dims[0], k) or any(b.type.dims != (experts,) for b in biases):
        return None
    trials = [_trial(region, biases, spread, consts) for spread in (1.0, 0.2, 0.2 / experts)]
    for form in _forms(region, experts, bool(biases)):
        scales = [t.scale({"k": k, **form}, region) for t in trials]
        if scales[0] is not None and len(set(scales)) == 1:
            return {"k": k, **form, "scale": scales[0]}
    return None


@dataclass(frozen=True)
class Trial:
    """Random logits and biases, and what a region makes of them."""

    logits: torch.Tensor
    bias: torch.Tensor | None
    weights: torch.Tensor
    index: torch.Tensor

    def scale(self, form: Form, region: Region) -> float | None:
        """What weights are multiplied by where this form chooses and weighs like the region."""
        given, chosen = ops.route(self.logits, self.bias, **form)
        if not torch.equal(chosen, self.index.int()):
            return None
        seen = (self.weights / given).median().item()
        scale = min([1.0, *region.numbers], key=lambda c: abs(c - seen))
        same = torch.allclose(given * scale, self.weights, rtol=TOLERANCE, atol=TOLERANCE / given.shape[-1])
        return scale if same else None


def _trial(region: Region, biases: list[Value], spread: float, consts: Consts) -> Trial:
    """One run. Biases are small enough for logits to matter, and below zero as often as above."""
    g = torch.Generator().manual_seed(0)
    experts = int(str(region.start.type.dims[-1]))
    x = 2 * torch.randn(TOKENS, experts, generator=g)
    bias = spread * (torch.randn(experts, generator=g) - 0.5)
    frame = region.run({region.start: x, **dict.fromkeys(biases, bias)}, consts, TOKENS)
    weights, index = (frame[end] for end in region.ends)
    return Trial(x, bias if biases else None, weights.float(), index)


def _forms(region: Region, experts: int, biased: bool) -> Iterator[Form]:
    """Attributes to try, the plain ones first."""
    groups = [{"groups": 1, "top_groups": 1, "best": 1}, *_groups(region, experts)]
    for parts, score, normalize, by in product(groups, SCORES, (False, True), (False, True)[: 1 + biased]):
        yield {"score": score, "by_logits": by, **parts, "normalize": normalize}


def _groups(region: Region, experts: int) -> Iterator[dict[str, int]]:
    """Groups that a region cuts experts into, and how many of them it may keep."""
    cuts = [n.result.type.dims[-2:] for n in region.nodes if n.op is ops.reshape]
    sizes = dict.fromkeys(c[0] for c in cuts if len(c) == 2 and c[0] * c[1] == experts)
    kept = dict.fromkeys(n.results[0].type.dims[-1] for n in region.nodes if n.op is ops.topk)
    for size, top, best in product(sizes, kept, (1, 2)):
        if isinstance(size, int) and isinstance(top, int) and size > 1 and top <= size <= experts // best:
            yield {"groups": size, "top_groups": top, "best": best}
