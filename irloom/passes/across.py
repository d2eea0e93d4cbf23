"""Rewrites across the boundary of layers, such as the last sum of one with the first norm of the next.

In a flat program there is no boundary, and a pattern matches by nature. In an outlined one the two ends stand
in two calls, of one function or of two. So the program is taken apart into its flat form, rewritten there,
and put together again: what crosses the boundary moves into the layer that its location names, the first
layer becomes a function of its own where it lost its start, and what the last one leaves is done behind the
loop. A weight of the layer before is ``{i-1}`` then.
"""

from __future__ import annotations

from collections.abc import Sequence

from irloom.ir.graph import Call, Loop, Module, Stmt

from .core import Changes, limited
from .inline import Inline
from .near_miss import NearMiss, if_asked
from .outline import Outline
from .rewrite import Rewrite, apply


def apply_across(m: Module, rules: Sequence[Rewrite]) -> Changes:
    """``apply``, and also where a pattern begins in one layer and ends in the next.

    Changes are those of the flat program, one for each layer. Layers whose caches are stacked stay apart
    (run before ``kv-cache``); so do those that would not be layers any more, and the rules then apply inside
    of each. The reason is a near miss.
    """
    calls = [c for s in m.main.body for c in _calls(s)]
    if not calls:
        return apply(m, rules)
    if m.buffers or any(c.slots or c.reads for c in calls):
        reason = "caches and buffers are planned for its layers as they are"
        return _inside(m, rules, NearMiss("main", f"{reason}: rewrite across them before kv-cache"))
    flat = m.copy()
    with limited(None):  # taking apart and putting together is no change
        Inline().run(flat)
    changes = apply(flat, rules)
    if not changes:
        changes.near_misses += if_asked("main", "nothing matches across its layers either")
        return changes
    with limited(None):
        folded = Outline().run(flat)
    if not folded:
        return _inside(m, rules, NearMiss("main", "its layers are none any more when rewritten across"))
    m.funcs, m.quants, m.consts = flat.funcs, flat.quants, flat.consts
    return changes


def _inside(m: Module, rules: Sequence[Rewrite], why: NearMiss) -> Changes:
    changes = apply(m, rules)
    changes.near_misses.append(why)
    return changes


def _calls(s: Stmt) -> list[Call]:
    return [c for c in (s.body if isinstance(s, Loop) else [s]) if isinstance(c, Call)]
