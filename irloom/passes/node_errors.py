"""How far each value of a program is from the value of the same name before a pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from irloom.ir.graph import Module, Node
from irloom.ir.interp import Interpreter

from .feed import Feed
from .random_weights import RandomWeights
from .record import Step
from .report import row_errors
from .sample import entry, layer_of
from .session import Session
from .shared_weights import SharedWeights

Values = dict[tuple[str, str], list[torch.Tensor]]
"""By function and name, one value for each time that it was computed."""
SHORT = Session(((5, 3),))


def node_errors(step: Step, weights: SharedWeights | None = None) -> dict[tuple[str, str], float]:
    """The relative error of each (function, value) that the program has before and after a pass.

    The worst row of the worst layer, on two short sequences; infinite where one side is not finite. Weights
    are seeded random ones where none are given. Values of other dims or elements than before are left out.
    """
    weights = weights or SharedWeights(RandomWeights([step.before]))
    feed = Feed(SHORT, weights.device)
    old, new = _values(step.before, feed, weights), _values(step.after, feed, weights)
    out: dict[tuple[str, str], float] = {}
    for key, made in new.items():
        pairs = list(zip(old.get(key, []), made, strict=False))
        if pairs and all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs):
            out[key] = max(_error(a, b) for a, b in pairs)
    return out


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    errors = row_errors(a, b)
    return errors.max().item() if len(errors) else 0.0


def _values(m: Module, feed: Feed, weights: SharedWeights) -> Values:
    f = entry(m)
    home = {n: g.name for g in m.funcs.values() for n in g.nodes}
    seen: Values = {}

    def observe(n: Node, results: Sequence[Any], layer: int | None) -> None:
        for r, x in zip(n.results, results, strict=True):
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                seen.setdefault((home[n], r.name), []).append(x)

    run = Interpreter(m, device=weights.device, observe=observe, weights=weights.of(m), keep=False)
    held = feed.caches(m)
    (who,) = feed.session.parts(whole=True)
    with torch.inference_mode():
        run(*(feed.given(m, p, who, held) for p in f.data), func=f.name, layer=layer_of(f))
    return seen
