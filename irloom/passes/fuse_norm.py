"""Run the step from one block of a residual stream to the next as one kernel: add, then normalize the sum.

The sum stays a value of its own (the next add reads it), so a fused op has two results. Where a block's own
result is normed before it is added (Gemma 2 and 3, OLMo 2), that norm goes along. A number that a norm is
multiplied by is in its weight from then on.

After ``outline`` it sees one layer at a time. Before it (with ``gather-logits`` still earlier, so that the
last norm is of last rows) the last sum of a layer also meets the norm that begins the next: one kernel less
a layer in post-norm models, and one distinct function more for each end of the stack.
"""

from __future__ import annotations

from dataclasses import dataclass

from irloom.ir.graph import Module, Param, Value
from irloom.ir.ops import add, add_layer_norm, add_rms_norm, layer_norm, mul, rms_norm, rms_norm_add
from irloom.ir.signature import Literal
from irloom.ir.weight_expr import Affine

from .across import apply_across
from .core import Changes, NoMatch, Pass
from .fold_weights import rounded
from .rewrite import Rewrite, Site, apply


class NormAddRmsNorm(Rewrite):
    """``rms_norm(x + rms_norm(y))``."""

    def match(
        self, x: Value, y: Value, w: Value | None, inner: Value | None, *, eps: float, inner_eps: float
    ) -> tuple[Value, Value]:
        s = add(x, rms_norm(y, inner, eps=inner_eps))
        return s, rms_norm(s, w, eps=eps)

    def replace(
        self, x: Value, y: Value, w: Value | None, inner: Value | None, eps: float, inner_eps: float
    ) -> tuple[Value, Value]:
        return add_rms_norm(x, y, w, inner, eps=eps, inner_eps=inner_eps)


class AddRmsNorm(Rewrite):
    """``rms_norm(x + y)``."""

    def match(self, x: Value, y: Value, w: Value | None, *, eps: float) -> tuple[Value, Value]:
        s = add(x, y)
        return s, rms_norm(s, w, eps=eps)

    def replace(self, x: Value, y: Value, w: Value | None, eps: float) -> tuple[Value, Value]:
        return add_rms_norm(x, y, w, eps=eps)


class AddLayerNorm(Rewrite):
    """``layer_norm(x + y)``."""

    def match(
        self, x: Value, y: Value, w: Value | None, b: Value | None, *, eps: float
    ) -> tuple[Value, Value]:
        s = add(x, y)
        return s, layer_norm(s, w, b, eps=eps)

    def replace(
        self, x: Value, y: Value, w: Value | None, b: Value | None, eps: float
    ) -> tuple[Value, Value]:
        return add_layer_norm(x, y, w, b, eps=eps)


class NormAdd(Rewrite):
    """``x + rms_norm(y)`` that no norm follows."""

    def match(self, x: Value, y: Value, w: Value | None, *, eps: float) -> Value:
        return add(x, rms_norm(y, w, eps=eps))

    def replace(self, x: Value, y: Value, w: Value | None, eps: float) -> Value:
        return rms_norm_add(x, y, w, eps=eps)


class ScaleNorm(Rewrite):
    """``c * rms_norm(x)``: the number goes into the norm's weight."""

    def match(self, x: Value, w: Value | None, c: Literal, *, eps: float, groups: int) -> Value:
        return mul(rms_norm(x, w, eps=eps, groups=groups), c)

    def replace(self, x: Value, w: Value | None, c: Literal, eps: float, groups: int, site: Site) -> Value:
        if w is None:
            raise NoMatch(f"the norm has no weight that {c:g} could be multiplied into")
        site.weight(w)
        exact = rounded(w, w.type.plain) if isinstance(w, Param) else None
        if exact is None:
            raise NoMatch(f"{w.name} is {w.type}, and weights are multiplied in f32")
        by = site.new_weight(f"{w.name}_scaled", w.type, Affine(exact, float(c), 0.0))
        return rms_norm(x, by, eps=eps, groups=groups)


@dataclass(frozen=True)
class FuseNorm(Pass):
    """``across``: also the last sum of a layer with the first norm of the next (false).

    The sum then stands in the next layer, the first layer is a function of its own, and what the last one
    leaves is added behind all. It must run before ``kv-cache``.
    """

    across: bool = False
    after = ("canonicalize", "raise", "gather-logits")

    def run(self, m: Module) -> Changes:
        changes = apply(m, [ScaleNorm()])
        rules = (NormAddRmsNorm(), AddRmsNorm(), AddLayerNorm())
        changes += apply_across(m, rules) if self.across else apply(m, rules)
        changes += apply(m, [NormAdd()])
        return changes
