"""Bring a program to its normal form, so that every other pass needs one pattern for one thing.

- Arithmetic that is exact: neutral numbers, double negation, casts of casts that lose nothing, numbers
last. - Reshapes, permutes, slices and expands that do nothing, or that are one with their neighbour; splits
and concats
  that cancel; the last dim counted as -1.
- Expands that broadcasting implies are dropped, tensors filled with one number become that number. - What
is computed twice is computed once, weights of one expression are one parameter, and what nothing reads
goes.

Nothing is reassociated: results stay equal to the last bit, but for the sign of a zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from irloom.ir.graph import Module

from . import algebra, movement
from .core import Changes, Pass
from .dedupe import drop, share, share_consts
from .rewrite import apply
from .tidy import tidy

RULES = (*algebra.RULES, *movement.RULES)


@dataclass(frozen=True)
class Canonicalize(Pass):
    """No options."""

    before = ("plan-memory",)

    def run(self, m: Module) -> Changes:
        changes, applied, before = share_consts(m), Changes(), -1
        while before != len(changes):
            before = len(changes)
            for f in m.funcs.values():
                changes += tidy(f)
                changes += share(f)
                changes += drop(f)
            applied = apply(m, RULES)
            changes.places += applied.places
        changes += share_consts(m)
        changes.near_misses += applied.near_misses
        return changes
