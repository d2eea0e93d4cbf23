"""Which change of a pass is wrong: with fuel for ``n`` the program is right, with one more it is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from irloom.ir.errors import IrloomError
from irloom.ir.graph import Module

from .core import Pass, limited
from .guard import run_guarded
from .pipeline import spell
from .registry import name_of
from .report import Report
from .trial import Trial
from .verified import Ran, Row, computation, verify_passes


@dataclass(frozen=True)
class Failure:
    """How a pass is wrong: numbers past their limit, or an error that it raised or whose cause it left."""

    report: Report | None = None
    error: IrloomError | None = None

    def like(self, other: Failure) -> bool:
        """Whether it is the same kind of failure, so that one may stand for the other."""
        if self.error is None or other.error is None:
            return self.error is other.error
        return type(self.error) is type(other.error) and _opening(self.error) == _opening(other.error)

    @property
    def message(self) -> str:
        """What it says, without places on this machine."""
        return self.error.message if self.error else str(self.report)

    def __str__(self) -> str:
        return str(self.error or self.report)


def _opening(e: IrloomError) -> str:
    """What an error says first: its op or its pass, before names and numbers of the place."""
    return " ".join(e.message.split(":")[0].split()[:4])


@dataclass(frozen=True)
class Culprit:
    """The first change after which a program is wrong.

    ``good`` is the program before it and ``bad`` the one after it (None where the pass raised), ``places``
    are what the pass said of it. ``change`` counts from 1; it is 0 where the pass is wrong without any fuel.
    """

    ran: Pass
    change: int
    changes: int
    places: list[str]
    failure: Failure
    good: Module
    bad: Module | None

    @property
    def name(self) -> str:
        """The name of the pass."""
        return name_of(type(self.ran))

    @property
    def place(self) -> str:
        """``function.value: rule`` of the change; of an error without one, where it was raised."""
        if self.places:
            return "; ".join(self.places)
        if self.failure.error:
            return next((p.removeprefix("  --> ") for p in self.failure.error.places), self.name)
        return f"{self.name}: wrong without fuel; the pass changes the program and does not ask `spend()`"

    def __str__(self) -> str:
        return f"{spell(self.ran)}, change {self.change} of {self.changes}: {self.place}"


def find_culprit(
    ran: Ran, trial: Trial, progress: Callable[[str, int, int], None] | None = None
) -> Culprit | None:
    """The first wrong change of the first wrong pass; None where every pass is right."""
    done = verify_passes(ran, trial, stop=True, progress=progress)
    at = done.first_bad
    if at is None:
        return None
    steps = ran.record.steps
    before = steps[at].before if at < len(steps) else ran.modules[-1]
    return narrow(before, ran.passes[at], trial, _failure(done.rows[at]))


def _failure(row: Row) -> Failure:
    return Failure(error=row.error) if row.error else Failure(row.compared.report if row.compared else None)


def narrow(before: Module, p: Pass, trial: Trial, failure: Failure) -> Culprit:
    """The first change with which ``p`` fails on ``before``, which is the program that the trial ran last.

    Halving finds a change before which all is well and after which it is not; where a later change undoes a
    mistake there may be others.
    """
    total = _spent(before, p)
    good, bad = -1, total
    while bad - good > 1:
        half = (good + bad) // 2
        if attempt(before, p, trial, half).failure is None:
            good = half
        else:
            bad = half
    last, first = attempt(before, p, trial, bad), attempt(before, p, trial, good) if good >= 0 else None
    places = list((Counter(last.places) - Counter(first.places if first else [])).elements())
    start = first.module if first and first.module else before
    return Culprit(p, bad, total, places, last.failure or failure, start, last.module)


@dataclass(frozen=True)
class Attempt:
    """A pass that was given some fuel: what it left, what it said, how it failed."""

    module: Module | None
    places: list[str]
    failure: Failure | None


def attempt(before: Module, p: Pass, trial: Trial, fuel: int | None = None) -> Attempt:
    """Run ``p`` on a copy of ``before`` with ``fuel`` and compare."""
    m = before.copy()
    try:
        with limited(fuel):
            changes = run_guarded(p, m, before)
        places = changes.places
        if computation(m) == computation(before):
            return Attempt(m, places, None)
        report = trial.compared(trial.run(m), p).report
    except IrloomError as e:
        return Attempt(None, _said(before, p, fuel), Failure(error=e))
    return Attempt(m, places, None if report.ok else Failure(report))


def _said(before: Module, p: Pass, fuel: int | None) -> list[str]:
    """The changes of a pass that left a malformed program; of one that raised nothing is known."""
    try:
        with limited(fuel):
            return p.run(before.copy()).places
    except Exception:
        return []


def _spent(before: Module, p: Pass) -> int:
    """How many changes a pass asks for, up to where it ends or raises."""
    with limited(None) as fuel:
        try:
            p.run(before.copy())
        except Exception:
            return fuel.spent + 1  # it may not have asked for the change that it did not survive
    return fuel.spent
