"""Run the step from one block of a residual stream to the next as one kernel: add, then normalize the sum.

The sum stays a value of its own (the next add reads it), so a fused op has two results.
"""

from __future__ import annotations

from dataclasses import dataclass

from irloom.ir.graph import Module, Value
from irloom.ir.ops import add, add_layer_norm, add_rms_norm, layer_norm, rms_norm

from .core import Changes, Pass
from .rewrite import Rewrite, apply


class AddRmsNorm(Rewrite):
    """``rms_norm(x + y)``."""

    def match(self, x: Value, y: Value, w: Value, *, eps: float) -> tuple[Value, Value]:
        s = add(x, y)
        return s, rms_norm(s, w, eps=eps)

    def replace(self, x: Value, y: Value, w: Value, eps: float) -> tuple[Value, Value]:
        return add_rms_norm(x, y, w, eps=eps)


class AddLayerNorm(Rewrite):
    """``layer_norm(x + y)``."""

    def match(self, x: Value, y: Value, w: Value, b: Value | None, *, eps: float) -> tuple[Value, Value]:
        s = add(x, y)
        return s, layer_norm(s, w, b, eps=eps)

    def replace(self, x: Value, y: Value, w: Value, b: Value | None, eps: float) -> tuple[Value, Value]:
        return add_layer_norm(x, y, w, b, eps=eps)


@dataclass(frozen=True)
class FuseNorm(Pass):
    """No options."""

    after = ("canonicalize", "raise", "gather-logits")

    def run(self, m: Module) -> Changes:
        return apply(m, [AddRmsNorm(), AddLayerNorm()])
