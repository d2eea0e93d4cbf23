"""The smallest program on which a pass still fails: cut around the change, then statement by statement."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from irloom.ir.errors import IrloomError
from irloom.ir.graph import Func, Module, Value
from irloom.ir.show import show_func
from irloom.ir.verify import verify

from .bisect import Attempt, Culprit, attempt
from .cutting import cut_out
from .trial import Trial

SECONDS = 60.0
"""Time to look for a smaller program; the smallest that was found by then is given."""
Try = Callable[[Module], Trial]
"""What a candidate is tried on: a session that fits it, with weights under the names that it binds."""


@dataclass(frozen=True)
class Reduced:
    """A program on which the pass fails as it did on the whole, what it makes of it, and how it fails.

    ``statements`` are those of the entry, ``whole`` those of the function that it was cut from.
    """

    module: Module
    found: Attempt
    statements: int
    whole: int


def reduce(culprit: Culprit, on: Try, seconds: float = SECONDS) -> Reduced | None:
    """Cut the program around the change that is wrong; None where the pass does not fail on any part.

    First the statements of the change alone, then with more of what they read and what reads them, then
    whole functions. What still fails loses statements as long as it does.
    """
    search = _Search(culprit, on, time.monotonic() + seconds)
    for name, keep in _around(culprit):
        found = search.fails(cut_out(culprit.good, name, keep))
        if found:
            return search.shrunk(*found, len(culprit.good.funcs[name].body))
    found = search.fails(culprit.good)
    return Reduced(*found, *[sum(len(f.body) for f in culprit.good.funcs.values())] * 2) if found else None


@dataclass
class _Search:
    culprit: Culprit
    on: Try
    until: float

    def fails(self, m: Module) -> tuple[Module, Attempt] | None:
        """``m`` and what the pass does to it, if that is the failure that is looked for."""
        try:
            verify(m)
            trial = self.on(m)
            trial.start(m)
        except IrloomError:
            return None
        found = attempt(m, self.culprit.ran, trial)
        same = found.failure is not None and found.failure.like(self.culprit.failure)
        return (m, found) if same else None

    def shrunk(self, m: Module, found: Attempt, whole: int) -> Reduced:
        """Without every statement that is not needed: half of them at a time, then a quarter, then one."""
        size = max(len(m.main.body) // 2, 1)
        while size:
            at = len(m.main.body)
            while at > 0 and time.monotonic() < self.until:
                at = max(at - size, 0)
                keep = [i for i in range(len(m.main.body)) if not at <= i < at + size]
                less = self.fails(cut_out(m, "main", keep)) if keep else None
                m, found = less or (m, found)
            size //= 2
        return Reduced(m, found, len(m.main.body), whole)


def _around(culprit: Culprit) -> Iterator[tuple[str, list[int]]]:
    """Statements to try, nearest first: those that the change took away, then their neighbours."""
    for name, f in culprit.good.funcs.items():
        after = culprit.bad.funcs.get(name) if culprit.bad else None
        core = _touched(f, after, culprit.places or [culprit.place])
        last: set[int] = set()
        while core and core != last:
            yield name, sorted(core)
            last, core = core, _wider(f, core)


def _touched(f: Func, after: Func | None, places: Sequence[str]) -> set[int]:
    """The statements that are not in the function any more, or that a place names."""
    named = (m[1] for p in places for m in re.finditer(rf"\b{re.escape(f.name)}\.(\w+(?:, \w+)*)", p))
    wanted = {name for names in named for name in names.split(", ")}
    here = {i for i, s in enumerate(f.body) if any(r.name in wanted for r in s.results)}
    if after is None:
        return here
    left = Counter(_lines(after))
    gone: set[int] = set()
    for i, line in enumerate(_lines(f)):
        if left[line]:
            left[line] -= 1
        else:
            gone.add(i)
    return gone or here


def _lines(f: Func) -> list[str]:
    """One text per statement."""
    return [show_func(Func(f.name, [], [s], s.results[:1])) for s in f.body]


def _wider(f: Func, core: set[int]) -> set[int]:
    """With the statements that make what those of ``core`` read, and those that read what they make."""
    producer = {r: i for i, s in enumerate(f.body) for r in s.results}
    made: set[Value] = {r for i in core for r in f.body[i].results}
    reads: set[Value] = {v for i in core for v in f.body[i].values}
    around = {producer[v] for v in reads if v in producer}
    around |= {i for i, s in enumerate(f.body) if made.intersection(s.values)}
    return core | around
