"""What a pass did to each node, as the marks that a page shows before and after it."""

from __future__ import annotations

from irloom.ir.diff import Change, Item, diff
from irloom.ir.graph import Node
from irloom.passes import Step

from .document import Mark

Marks = dict[str, list[Mark]]


def marks(step: Step) -> tuple[Marks, Marks]:
    """Marks of nodes in the program before and in the one after a step, by function."""
    before: Marks = {}
    after: Marks = {}
    for found in diff(step.before, step.after).funcs:
        for change in found.changes:
            _add(before, change, change.old, change.new)
            _add(after, change, change.new, change.old)
    return before, after


def _add(marks: Marks, change: Change, mine: Item | None, other: Item | None) -> None:
    if mine is not None and isinstance(mine.at, Node):
        twin = f"{other.func}.{other.name}" if other is not None else ""
        marks.setdefault(mine.func, []).append((mine.name, change.kind, twin))
