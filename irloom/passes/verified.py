"""A pipeline, checked pass by pass: the program before and after each, on the same inputs and weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from irloom.ir.errors import IrloomError
from irloom.ir.garbage import uncollected
from irloom.ir.graph import Loop, Module
from irloom.ir.show import show
from irloom.ir.verify import verify

from .core import Pass
from .order import check_order
from .pipeline import spell, steps
from .record import Record, Step
from .registry import name_of
from .report import Report
from .trial import Compared, Trial

Progress = Callable[[str, int, int], None]


@dataclass
class Row:
    """A pass: how many changes it made, and what they did to the numbers.

    ``compared`` is None where the pass left the computation as it was, and then nothing was run. ``error`` is
    what it raised, or why the program that it left cannot be run or compared.
    """

    name: str
    text: str
    changes: int
    seconds: float
    compared: Compared | None = None
    error: IrloomError | None = None

    @property
    def ok(self) -> bool:
        """Whether the pass did its work and the numbers are within their limit."""
        return self.error is None and (self.compared is None or self.compared.report.ok)

    def to_json(self) -> dict[str, Any]:
        """Plain data: what a script reads."""
        row: dict[str, Any] = {
            "pass": self.name,
            "text": self.text,
            "changes": self.changes,
            "ok": self.ok,
            "seconds": round(self.seconds, 3),
            "error": str(self.error) if self.error else None,
        }
        if self.compared:
            row |= numbers(self.compared.report)
            row["layers"] = {name: numbers(r) for name, r in self.compared.layers.items()}
        return row


@dataclass
class Verified:
    """What was checked: a row per pass, and the record of the run."""

    rows: list[Row]
    record: Record = field(default_factory=Record)
    session: str = ""
    missed: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every pass is right."""
        return all(row.ok for row in self.rows)

    @property
    def first_bad(self) -> int | None:
        """The place of the first pass that is not."""
        return next((i for i, row in enumerate(self.rows) if not row.ok), None)


@dataclass(frozen=True)
class Ran:
    """A pipeline as far as it came: the record, and what stopped the pass behind it, if one was stopped."""

    start: Module
    passes: Sequence[Pass]
    record: Record
    error: IrloomError | None = None

    @property
    def modules(self) -> list[Module]:
        """The program before the first pass and after each."""
        return [self.start, *(step.after for step in self.record.steps)]


def run_as_far(m: Module, passes: Sequence[Pass]) -> Ran:
    """Run ``passes`` up to the first that raises, leaves a malformed program or undoes another."""
    record, error, made = Record(), None, steps(m.copy(), passes)
    try:
        verify(m)
        with uncollected():
            for i in range(len(passes)):
                check_order(passes[: i + 1], m.passes)
                record.steps.append(next(made))
    except IrloomError as e:
        error = e
    return Ran(m, passes, record, error)


def verify_passes(ran: Ran, trial: Trial, stop: bool = False, progress: Progress | None = None) -> Verified:
    """Compare the program that each pass found with the one that it left; ``stop`` at the first bad one.

    A program that is the same but for names, ranges and buffers is not run again: the interpreter does not
    see those.
    """
    done = Verified([], ran.record, str(trial.session), trial.session.missed)
    trial.start(ran.start)
    for i, step in enumerate(ran.record.steps):
        start = time.perf_counter()
        if progress:
            progress("verify", i, len(ran.passes))
        row = Row(step.name, step.text, len(step.changes), 0.0)
        done.rows.append(row)
        try:
            row.compared = compare_step(step, trial, stop)
            step.numerics = row.compared.report if row.compared else None
        except IrloomError as e:
            row.error = e
        row.seconds = step.seconds + time.perf_counter() - start
        if row.error or (stop and not row.ok):
            return done
    if ran.error:
        p = ran.passes[len(ran.record.steps)]
        done.rows.append(Row(name_of(type(p)), spell(p), 0, 0.0, error=ran.error))
    return done


def compare_step(step: Step, trial: Trial, stop: bool = False) -> Compared | None:
    """What a pass did to the numbers; None where the computation is the one that it was.

    With ``stop`` a program that is wrong is not what later ones are compared with.
    """
    if not step.changes.places or computation(step.before) == computation(step.after):
        return None
    new = trial.run(step.after)
    found = trial.compared(new, step.ran)
    if found.report.ok or not stop:
        trial.accept(new, step.ran)
    return found


def computation(m: Module) -> str:
    """The program as far as an interpreter sees it: without buffers, ranges of dims, and what has run."""
    bare = m.copy()
    bare.passes, bare.dims, bare.buffers = [], {}, {}
    for f in bare.funcs.values():
        for s in f.body:
            for v in (r for x in (s.body if isinstance(s, Loop) else [s]) for r in x.results):
                v.buffer = None
    return show(bare)


def numbers(r: Report) -> dict[str, Any]:
    """A report as plain data."""
    return {
        "max_abs": r.max_abs,
        "relative": r.relative,
        "norm": r.norm,
        "cosine": r.cosine,
        "kl": r.kl,
        "top1": r.top1,
        "measured": r.error,
        "allowed": r.allowed,
        "where": r.where,
        "rows": r.rows,
        "unstable": r.unstable,
    }
