"""Bring a program to its normal form."""

from __future__ import annotations

from dataclasses import dataclass

from irloom.ir.graph import Module, Value
from irloom.ir.ops import neg

from .core import Changes, Pass
from .rewrite import Rewrite, apply


class Neg(Rewrite):
    shared = True
    quiet = True

    def match(self, x: Value) -> Value:
        return neg(neg(x))

    def replace(self, x: Value) -> Value:
        return x


@dataclass(frozen=True)
class Canonicalize(Pass):
    """No options."""

    def run(self, m: Module) -> Changes:
        return apply(m, [Neg()])
