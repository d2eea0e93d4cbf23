"""A run's record, or a program alone, as the data of a page."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from irloom import __version__
from irloom.ir.device import Device
from irloom.ir.graph import Module
from irloom.passes import Record, Step
from irloom.passes.near_miss import NearMiss

from .costs import Costs, workloads
from .document import FORMAT, Document, StepRow
from .figures import figures
from .marks import marks
from .program import Programs

MOST = 1e30
"""What an error that is infinite is shown as."""

Errors = dict[tuple[str, str], float]
"""The relative error of a value, by function and name."""


@dataclass(frozen=True)
class Settings:
    """What costs are for: ``seqs`` sequences of ``context`` tokens, on ``device`` where one is given."""

    context: int = 1024
    seqs: int = 1
    device: Device | None = None


def document(
    what: Module | Record, settings: Settings | None = None, errors: dict[int, Errors] | None = None
) -> Document:
    """The data of a page. ``errors`` are those of steps by their number in the record.

    ``ValueError`` for a record without a step: it holds no program.
    """
    settings = settings or Settings()
    steps, states = _states(what)
    costs = workloads(settings.context, settings.seqs)
    prices = Costs(costs, settings.device)
    programs = Programs(prices)
    rows = [programs.add(m) for m in states]
    return {
        "format": FORMAT,
        "irloom": __version__,
        "model": states[-1].model or "program",
        "figures": figures(states[-1], prices),
        "workloads": costs,
        "device": asdict(settings.device) if settings.device else None,
        "tables": programs.tables(),
        "states": rows,
        "steps": [_step(s, (errors or {}).get(i)) for i, s in enumerate(steps)],
    }


def _states(what: Module | Record) -> tuple[list[Step], list[Module]]:
    if isinstance(what, Module):
        return [], [what]
    if not what.steps:
        raise ValueError("the record has no steps: give the program itself")
    return what.steps, [what.steps[0].before, *(s.after for s in what.steps)]


def _step(step: Step, errors: Errors | None) -> StepRow:
    before, after = marks(step)
    return {
        "name": step.name,
        "text": step.text,
        "seconds": round(step.seconds, 6),
        "changes": [str(place) for place in step.changes.places],
        "near": [(miss.place, _reason(miss), round(miss.share, 3)) for miss in step.changes.near_misses],
        "before": before,
        "after": after,
        "numerics": _numerics(step),
        "errors": None if errors is None else _by_function(errors),
    }


def _reason(miss: NearMiss) -> str:
    """Which rule stopped, for what, and how far it had got."""
    said = ": ".join(part for part in (miss.rule, miss.reason) if part)
    return f"{said} (after {', '.join(miss.matched)}: {miss.depth} of {miss.of})" if miss.of else said


def _numerics(step: Step) -> dict[str, Any] | None:
    """A step's report once it was verified."""
    report = step.numerics
    return None if report is None else {k: _finite(v) for k, v in asdict(report).items()}


def _finite(x: Any) -> Any:
    """``x``; infinity and what is no number as text, for JSON has neither."""
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x


def _by_function(errors: Errors) -> dict[str, list[tuple[str, float]]]:
    out: dict[str, list[tuple[str, float]]] = {}
    for (f, value), error in errors.items():
        out.setdefault(f, []).append((value, min(float(f"{error:.3g}"), MOST)))
    return out
