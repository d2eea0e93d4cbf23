"""What a pass did to each function, as the marks that a page shows before and after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from irloom.ir.graph import Loop, Module, Node, Stmt, Value
from irloom.ir.show import show_attr
from irloom.passes import Step

from .document import MarksRow


def marks(step: Step) -> tuple[dict[str, MarksRow], dict[str, MarksRow]]:
    """Marks for the program before and after a step, by function; functions without any are left out.

    A value whose name and definition are the same on both sides has no mark.
    """
    before, after = _definitions(step.before), _definitions(step.after)
    homes = {name: f for f, values in after.items() for name in values}
    old = {f: _marked(f, values, after.get(f, {}), homes, removed=True) for f, values in before.items()}
    homes = {name: f for f, values in before.items() for name in values}
    new = {f: _marked(f, values, before.get(f, {}), homes, removed=False) for f, values in after.items()}
    return _some(old), _some(new)


def _some(rows: dict[str, MarksRow]) -> dict[str, MarksRow]:
    return {f: row for f, row in rows.items() if any(row.values())}


def _marked(
    f: str, mine: dict[str, Any], other: dict[str, Any], homes: dict[str, str], *, removed: bool
) -> MarksRow:
    row: MarksRow = {"added": [], "removed": [], "changed": [], "moved": []}
    for name, definition in mine.items():
        if name not in other:
            gone = row["removed"] if removed else row["added"]
            (row["moved"] if homes.get(name, f) != f else gone).append(name)
        elif other[name] != definition:
            row["changed"].append(name)
    return row


def _definitions(m: Module) -> dict[str, dict[str, Any]]:
    """Per function and value name: the op, its operands, attributes and types."""
    return {f.name: dict(_each(f.body)) for f in m.funcs.values()} if m.funcs else {}


def _each(body: list[Stmt]) -> Iterator[tuple[str, Any]]:
    for s in body:
        if isinstance(s, Loop):
            yield from _each(s.body)
        elif isinstance(s, Node):
            attrs = tuple((k, show_attr(v)) for k, v in s.attrs.items())
            operands = tuple(a.name if isinstance(a, Value) else show_attr(a) for a in s.args)
            yield s.results[0].name, (s.op.name, operands, attrs, tuple(r.type for r in s.results))

