"""Run a mixture of gated experts as one kernel, from the choice of experts to the sum of what they give.

Without it each of a token's experts leaves its gate, its product and its result in memory. Experts with
another gate than ``silu`` or ``gelu``, or a norm after them, stay two products and what is between them.
"""

from __future__ import annotations

from dataclasses import dataclass

from irloom.ir.graph import Module, Value
from irloom.ir.ops import expert_linear, gelu_mul, moe, silu_mul, split, weighted_sum

from .core import Changes, NoMatch, Pass
from .rewrite import Rewrite, apply


class FuseSiluExperts(Rewrite):
    """Experts whose gate is ``silu``."""

    def match(
        self, x: Value, index: Value, weights: Value, w1: Value, w2: Value,
        b1: Value | None, b2: Value | None, *, sizes: tuple[int, ...],
    ) -> Value:  # fmt: skip
        both = split(expert_linear(x, index, w1, b1), dim=-1, sizes=sizes)
        out = expert_linear(silu_mul(both[0], both[1]), index, w2, b2)
        return weighted_sum(out, weights)

    def where(self, x: Value) -> None:
        _per_token(x)

    def replace(
        self, x: Value, index: Value, weights: Value, w1: Value, w2: Value, b1: Value | None, b2: Value | None
    ) -> Value:
        return moe(x, index, weights, w1, w2, b1, b2)


class FuseGeluExperts(Rewrite):
    """Experts whose gate is ``gelu``."""

    quiet = True

    def match(
        self, x: Value, index: Value, weights: Value, w1: Value, w2: Value,
        b1: Value | None, b2: Value | None, *, sizes: tuple[int, ...], tanh: bool,
    ) -> Value:  # fmt: skip
        both = split(expert_linear(x, index, w1, b1), dim=-1, sizes=sizes)
        out = expert_linear(gelu_mul(both[0], both[1], tanh=tanh), index, w2, b2)
        return weighted_sum(out, weights)

    def where(self, x: Value) -> None:
        _per_token(x)

    def replace(
        self, x: Value, index: Value, weights: Value, w1: Value, w2: Value,
        b1: Value | None, b2: Value | None, tanh: bool,
    ) -> Value:  # fmt: skip
        return moe(x, index, weights, w1, w2, b1, b2, act="gelu_tanh" if tanh else "gelu")


def _per_token(x: Value) -> None:
    if x.type.rank != 2:
        raise NoMatch(f"{x.name} is {x.type}, a row for each choice")


@dataclass(frozen=True)
class FuseMoe(Pass):
    """No options."""

    after = ("canonicalize", "raise", "fuse-mlp")
    before = ("plan-memory",)

    def run(self, m: Module) -> Changes:
        return apply(m, [FuseSiluExperts(), FuseGeluExperts()])
