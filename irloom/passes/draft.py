"""A function while it is rewritten: who makes and who reads each value, kept up to date at every change.

Statements stand in slots, one per statement of the original body; a slot may come to hold several or none. So
a rewrite costs what it touches, not the length of the function, and order is a comparison of two numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from irloom.ir.graph import Builder, Func, Loop, Node, Param, Stmt, Value, substitute
from irloom.ir.op import OPS


class Draft:
    """``producer`` and ``readers`` of each value (in order of first reading), and ``taken`` names."""

    def __init__(self, f: Func) -> None:
        self.func = f
        self.slots: list[list[Stmt]] = [[s] for s in f.body]
        self.slot: dict[Stmt, int] = {s: i for i, s in enumerate(f.body)}
        self.producer: dict[Value, Stmt] = f.producers()
        self.readers: dict[Value, dict[Stmt, None]] = {}
        self.returned = Counter(f.returns)
        loops = [s for s in f.body if isinstance(s, Loop)]
        self.taken = f.names() | {v.name for loop in loops for s in loop.body for v in s.results}
        for s in f.body:
            self._read(s)

    def builder(self, into: list[Stmt], loc: str) -> Builder:
        """Builds statements that are not yet part of the function; their names are taken at once."""
        return Builder(self.func, into, loc, self.taken)

    def is_read(self, v: Value) -> bool:
        """Whether anything reads ``v``, or the function returns it."""
        return bool(self.readers.get(v)) or v in self.returned

    def place(self, s: Stmt) -> tuple[int, int]:
        """Where a statement stands; statements compare by it."""
        i = self.slot[s]
        return i, self.slots[i].index(s)

    def defined_before(self, v: Value, at: Stmt) -> bool:
        """Whether ``v`` is there when ``at`` runs."""
        s = self.producer.get(v)
        return s is None or self.place(s) < self.place(at)

    def insert(self, new: Iterable[Stmt], before: Stmt) -> None:
        """Put statements in front of one."""
        i, j = self.place(before)
        made = list(new)
        self.slots[i][j:j] = made
        for s in made:
            self.slot[s] = i
            self.producer.update(dict.fromkeys(s.results, s))
            self._read(s)

    def remove(self, s: Stmt) -> None:
        """Take out a statement that nothing reads."""
        assert not any(self.is_read(r) for r in s.results)
        self.slots[self.slot.pop(s)].remove(s)
        for v in set(s.values):
            del self.readers[v][s]
        for r in s.results:
            del self.producer[r]
            self.taken.discard(r.name)

    def sweep(self, nodes: Sequence[Stmt]) -> None:
        """Take out those statements that nothing reads, readers before what they read."""
        for s in sorted((s for s in nodes if s in self.slot), key=self.place, reverse=True):
            if not any(self.is_read(r) for r in s.results):
                self.remove(s)

    def drop(self, values: Iterable[Value | None]) -> None:
        """Take out those of the values that are weights and that nothing reads."""
        for v in values:
            if isinstance(v, Param) and v.weight and not self.is_read(v):
                self.func.params.remove(v)
                self.taken.discard(v.name)

    def redirect(self, old: Value, new: Value) -> None:
        """Let every reader of ``old`` read ``new``."""
        readers = self.readers.pop(old, {})

        def follow(a: Any) -> Any:
            return new if a is old else a

        for s in readers:
            substitute(s, follow)
            self.readers.setdefault(new, {})[s] = None
        if old in self.returned:
            self.func.returns = [new if r is old else r for r in self.func.returns]
            self.returned[new] += self.returned.pop(old)

    def rename(self, v: Value, name: str) -> None:
        """Give a value a name that is free, or was freed just now."""
        self.taken.discard(v.name)
        self.taken.add(name)
        v.name = name

    def inherit(self, v: Value, name: str) -> None:
        """Call ``v`` as what it stands in for, unless that name only said which op it came from.

        ``gate`` stays ``gate``, but a ``mul_3`` that has become the result of ``silu_mul`` is called so. One
        of several results keeps the name: ``add_rms_norm`` would say of neither what it is.
        """
        s = self.producer.get(v)
        if not (isinstance(s, Node) and len(s.results) == 1 and op_of(name) not in (None, s.op.name)):
            self.rename(v, name)

    def commit(self) -> None:
        """Write the statements back to the function."""
        self.func.body = [s for slot in self.slots for s in slot]

    def _read(self, s: Stmt) -> None:
        for v in s.values:
            self.readers.setdefault(v, {})[s] = None


def op_of(name: str) -> str | None:
    """The op that a value is called after, where its name says no more than that.

    >>> op_of("mul_3"), op_of("gate")
    ('mul', None)
    """
    stem = re.sub(r"_\d+$", "", name)
    return stem if stem in OPS else None
