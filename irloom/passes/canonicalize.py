"""Bring a program to its normal form, so that every other pass needs one pattern for one thing.

- **Algebra** that is exact: neutral numbers, signs that cancel, casts of casts that lose nothing, scales that
  are joined where nothing rounds; numbers stand last.
- **Motion**: chains of reshapes and permutes become the shortest that does the same, and pass elementwise ops
  where they then cancel. Slices, splits, concats and expands that do nothing, or that are one with their
  neighbour, go. The last dim is counted as -1.
- **Constants**: arithmetic on numbers and on small tensors that the module holds is done here; arithmetic on
  weights becomes part of how they are read.
- **Sharing**: what is computed twice is computed once, weights of one expression are one parameter, expands
  that broadcasting implies are dropped, and what nothing reads goes.

Nothing is reassociated: results stay equal to the last bit, but for the sign of a zero. A second run finds
nothing to do.
"""

from __future__ import annotations

from dataclasses import dataclass

from irloom.ir.graph import Module

from . import algebra, movement, signs
from .constants import fold_constants
from .core import Changes, Pass
from .dedupe import drop, share, share_consts
from .fold_weights import fold_weights
from .motion import move
from .rewrite import apply
from .tidy import tidy

RULES = (*algebra.RULES, *signs.RULES, *movement.RULES)


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
                changes += move(f)
                changes += fold_constants(m, f)
                changes += fold_weights(f)
                changes += share(f)
                changes += drop(f)
            applied = apply(m, RULES)
            changes.places += applied.places
        changes += share_consts(m)
        changes.near_misses += applied.near_misses
        return changes
