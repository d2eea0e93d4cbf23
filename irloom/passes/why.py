"""Why a pass did not fire: for each place how far it got and what stopped it, the closest first.

The pass runs once more on the program that it found, this time telling every miss, also those of rules that
are quiet otherwise and of patterns of which only the first op was there.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby
from typing import Any

from irloom.ir.errors import PipelineError

from .near_miss import NearMiss, every_miss, ranked
from .record import Record, Step

_NUMBER_OF_A_VALUE = re.compile(r"_\d+\b|(?<!\b[fiu])(?<!\bbf)(?<=[a-z])\d+\b")
"""``y_1``, ``y1``; of an element, ``bf16``, it says what it is."""

SHOWN = 3
"""Rules that are shown of each place: those that came furthest."""


@dataclass(frozen=True)
class Place:
    """A place where a pass changed nothing: what stopped each of its rules, those that came furthest first.

    ``like`` are the places where exactly the same happened, as it does in the layers of a flat program.
    """

    misses: list[NearMiss]
    like: list[str]

    def __str__(self) -> str:
        first = self.misses[0]
        head = "  ".join(part for part in (first.place, first.loc) if part)
        more = f" (and {len(self.like)} like it: {_some(self.like)})" if self.like else ""
        rows = [f"    {_told(miss)}" for miss in self.misses[:SHOWN]]
        rest = len(self.misses) - SHOWN
        rows += [f"    and {_count(rest, 'rule')} that came no further"] if rest > 0 else []
        return "\n".join([f"  {head}{more}", *rows])


@dataclass(frozen=True)
class Why:
    """What one run of a pass changed, where it did not, and the rules of which an op occurs nowhere."""

    name: str
    text: str
    changed: list[str]
    places: list[Place]
    absent: list[NearMiss]
    seeks: str

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "pass": self.text,
            "changed": self.changed,
            "places": [{"like": p.like, "misses": [_json(miss) for miss in p.misses]} for p in self.places],
            "absent": [_json(miss) for miss in self.absent],
        }

    def __str__(self) -> str:
        head = [f"{self.text}: {_count(len(self.changed), 'change')}, {_count(self._missed, 'place')} left"]
        absent = [
            f"  {reason}: {', '.join(dict.fromkeys(miss.rule for miss in misses))}"
            for reason, misses in _grouped(self.absent)
        ]
        rows = [*map(str, self.places), *absent]
        if not rows and not self.changed:
            rows = [f"  nothing here is what it looks for: {self.seeks}"]
        return "\n".join([*head, *rows])

    @property
    def _missed(self) -> int:
        return sum(1 + len(p.like) for p in self.places)


def why(record: Record, name: str) -> str:
    """Where the pass called ``name`` did not fire, and why: a paragraph for each time that it ran."""
    return "\n\n".join(map(str, reasons(record, name)))


def reasons(record: Record, name: str) -> list[Why]:
    """As ``why`` tells it, one for each run of the pass; ``PipelineError`` where it did not run."""
    steps = [s for s in record.steps if s.name == name]
    if not steps:
        ran = list(dict.fromkeys(s.name for s in record.steps))
        near = get_close_matches(name, ran, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"`--with {name}` adds it; here run {', '.join(ran)}"
        raise PipelineError(f"the pipeline has no pass {name!r}", hint=hint)
    return [_why(s) for s in steps]


def _why(step: Step) -> Why:
    with every_miss():
        changes = step.ran.run(step.before.copy())
    misses = list(dict.fromkeys(ranked(changes.near_misses)))
    placed = [miss for miss in misses if miss.place]
    cls = type(step.ran)
    seeks = (inspect.getdoc(inspect.getmodule(cls)) or inspect.cleandoc(cls.__doc__ or "")).partition("\n")[0]
    absent = [miss for miss in misses if not miss.place]
    return Why(step.name, step.text, changes.places, _places(placed), absent, seeks)


def _places(misses: Sequence[NearMiss]) -> list[Place]:
    """Misses by place, in the order of the closest of each; places that tell the same are one."""
    by_place: dict[str, list[NearMiss]] = {}
    for miss in misses:
        by_place.setdefault(miss.place, []).append(miss)
    alike: dict[tuple[tuple[str, ...], ...], list[list[NearMiss]]] = {}
    for each in by_place.values():
        alike.setdefault(tuple(_same(m) for m in each), []).append(each)
    return [Place(same[0], [each[0].place for each in same[1:]]) for same in alike.values()]


def _same(miss: NearMiss) -> tuple[str, str, str]:
    """What places share that are alike: without the numbers of layers, and of values named alike."""
    loc = re.sub(r"(?<=\.)\d+\b", "", miss.loc.partition(" ")[0]) + miss.loc.partition(" ")[2]
    return loc, miss.rule, _NUMBER_OF_A_VALUE.sub("", miss.reason)


def _told(miss: NearMiss) -> str:
    """``AddRmsNorm: 2 of 2 ops (rms_norm, add): s has another reader: z``."""
    far = f"{miss.depth} of {_count(miss.of, 'op')} ({', '.join(miss.matched)})" if miss.of else ""
    return ": ".join(part for part in (miss.rule, far, miss.reason) if part)


def _json(miss: NearMiss) -> dict[str, Any]:
    return {
        "place": miss.place,
        "loc": miss.loc,
        "rule": miss.rule,
        "matched": list(miss.matched),
        "of": miss.of,
        "reason": miss.reason,
    }


def _grouped(misses: Iterable[NearMiss]) -> list[tuple[str, list[NearMiss]]]:
    ordered = sorted(misses, key=lambda miss: miss.reason)
    return [(reason, list(group)) for reason, group in groupby(ordered, key=lambda miss: miss.reason)]


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
