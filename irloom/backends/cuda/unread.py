"""Launches whose results nobody reads any more, because a kernel takes what they were made of."""

from __future__ import annotations

from collections.abc import Iterable

from irloom.ir.graph import Arg, Node, Value

from .lower import Lowering
from .program import Launch, Same, View


def drop(f: Lowering, n: Node, values: Iterable[Arg], kept: Iterable[Arg]) -> None:
    """Of what has been lowered so far, drop what makes only ``values``: ``n`` reads ``kept`` instead."""
    left = {v for v in kept if isinstance(v, Value)}
    waiting = [v for v in values if isinstance(v, Value)]
    while waiting:
        v = waiting.pop()
        made = next((s for s in f.steps if isinstance(s, (Launch, View, Same)) and v in s.results), None)
        if made is not None and not any(_read(f, n, r, left) for r in made.results):
            f.steps.remove(made)
            waiting.extend(made.values)


def _read(f: Lowering, n: Node, v: Value, left: set[Value]) -> bool:
    """Whether something other than ``n`` reads a value, or will."""
    if v in left or v in f.func.returns or any(v in s.values for s in f.steps):
        return True
    if any(v in (p.x, p.norm) for p in f.prologues.values()):
        return True
    later = [s for s in f.readers.get(v, []) if f.order[id(s)] > f.order[id(n)]]
    return any(id(s) not in f.folded for s in later)
