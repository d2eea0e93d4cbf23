"""What a pass did to each node, as the marks that a page shows before and after it."""

from __future__ import annotations

from irloom.ir.diff import Change, Item, diff
from irloom.ir.graph import Node
from irloom.ir.types import Type
from irloom.passes import Step

from .document import Mark

Marks = dict[str, list[Mark]]


def marks(step: Step) -> tuple[Marks, Marks]:
    """Marks of nodes before and after a step, by function; a new buffer is none."""
    before: Marks = {}
    after: Marks = {}
    for found in diff(step.before, step.after).funcs:
        for change in found.changes:
            if _only_placed(change):
                continue
            _add(before, change, change.old, change.new)
            _add(after, change, change.new, change.old)
    return before, after


def _only_placed(change: Change) -> bool:
    """Whether all that differs is which buffer results live in: true of most nodes behind ``plan-memory``."""
    if change.kind != "retyped" or change.old is None or change.new is None:
        return False
    a, b = change.old.at, change.new.at
    return isinstance(a, Node) and isinstance(b, Node) and _types(a) == _types(b)


def _types(n: Node) -> list[Type]:
    return [r.type for r in n.results]


def _add(marks: Marks, change: Change, mine: Item | None, other: Item | None) -> None:
    if mine is not None and isinstance(mine.at, Node):
        twin = f"{other.func}.{other.name}" if other is not None else ""
        marks.setdefault(mine.func, []).append((mine.name, change.kind, twin))
