"""Which pass of a run took a node, a call or a parameter out of the program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from irloom.ir.align import statements
from irloom.ir.diff import Diff, diff
from irloom.ir.graph import Param, Stmt

from .record import Step


def blamed(d: Diff, steps: Sequence[Step]) -> Diff:
    """``d``, from before the first of ``steps`` to after the last, with the pass behind what is removed."""
    gone = removers(steps)
    for f in d.funcs:
        f.changes = [
            replace(c, removed_by=gone.get(c.old.at, "")) if c.kind == "removed" and c.old else c
            for c in f.changes
        ]
    return d


def removers(steps: Sequence[Step]) -> dict[Param | Stmt, str]:
    """For what is in the program before the first step and not after the last: the pass that removed it."""
    if not steps:
        return {}
    start = steps[0].before.funcs.values()
    alive: dict[Param | Stmt, list[Param | Stmt]] = {
        x: [x] for f in start for x in (*f.params, *statements(f.body))
    }
    out: dict[Param | Stmt, str] = {}
    for step in steps:
        if step.changes.places:  # else the program is the very same
            alive = _followed(step, alive, out)
    return out


def _followed(
    step: Step, alive: dict[Param | Stmt, list[Param | Stmt]], out: dict[Param | Stmt, str]
) -> dict[Param | Stmt, list[Param | Stmt]]:
    """``alive``, what is left of the start by what it is now, after a step; what is no more goes to ``out``.

    Several may have become one, as the nodes of equal layers do.
    """
    goes: dict[Param | Stmt, Param | Stmt] = {}
    for f in diff(step.before, step.after).funcs:
        goes |= {**f.pairs.params, **f.pairs.stmts}
        goes |= {c.old.at: c.new.at for c in f.of("moved") if c.old and c.new}
    now: dict[Param | Stmt, list[Param | Stmt]] = {}
    for x, origins in alive.items():
        if x in goes:
            now.setdefault(goes[x], []).extend(origins)
        else:
            out |= dict.fromkeys(origins, step.name)
    return now
