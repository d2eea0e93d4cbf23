"""Where a pass may stand: what ``after``, ``before``, ``requires`` and ``preserves`` allow in a pipeline."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from irloom.ir.errors import PipelineError

from .core import Pass
from .registry import name_of

EVERY = "*"


@dataclass(frozen=True)
class Constraint:
    """``first`` runs before ``second``: one of the two ``says`` so, with its ``word``, of it or of all."""

    first: str
    second: str
    says: str
    word: str
    of_all: bool = False

    @property
    def other(self) -> str:
        """The pass that it is said of."""
        return self.first if self.says == self.second else self.second

    def __str__(self) -> str:
        return f"{self.says} says {self.word} {EVERY if self.of_all else self.other}"


def check_order(passes: Sequence[Pass], ran: Sequence[str] = ()) -> None:
    """Refuse an order that a pass of the pipeline forbids; ``ran`` is what the module has behind it.

    ``PipelineError`` names the constraint that is broken; where no order would do, those that collide.
    """
    names = [*ran, *map(_name, passes)]
    first = {name: names.index(name) for name in names}
    all_of_them = constraints(passes, ran)
    for c in all_of_them:
        if c.word != "requires" and first[c.first] > first[c.second]:
            _sorted(names, all_of_them)
            raise PipelineError(
                f"{c.says} must run {c.word} {c.other}",
                hint=f"{c.says} says {c.word} = ({c.other!r},): exchange the two",
            )
    if missing := _missing(passes, ran):
        raise missing


def place(passes: Sequence[Pass], new: Sequence[Pass]) -> list[Pass]:
    """``passes``, in the order they have, with each of ``new`` where the order constraints put it.

    That is directly after the last pass that it must follow; one that follows nothing stands directly before
    the first pass that it must precede; one that says nothing, at the end. Where a pass would undo what a
    later one requires, the next place is taken where it does not. ``PipelineError`` names two constraints
    that leave no place.
    """
    out, waiting = list(passes), {_name(p): p for p in new}
    every = constraints([*passes, *waiting.values()])
    for name in _sorted(waiting, every):
        p = waiting.pop(name)
        low, high = _floor(name, out, every), _ceiling(name, out, every, waiting)
        if low and high and low.at > high.at:
            raise PipelineError(
                f"{name} must run after {low.name} ({low.why}) and before {high.name} ({high.why}): "
                f"{high.name} comes before {low.name}",
                hint=f"leave {name} out, or one of the two",
            )
        out.insert(_slot(p, out, low, high, new), p)
    return out


def reasons(name: str, passes: Sequence[Pass]) -> list[Constraint]:
    """What holds the pass called ``name`` where it stands: the nearest pass it follows, and it precedes.

    What is said of all passes is a reason only where nothing else is.
    """
    names, every = [_name(p) for p in passes], constraints(passes)
    about = [c for c in every if name in (c.first, c.second)]
    about = [c for c in about if not c.of_all] or about
    about = sorted(about, key=lambda c: c.says != name)  # what it says itself comes first
    last = max((c for c in about if c.second == name), key=lambda c: names.index(c.first), default=None)
    next_ = min((c for c in about if c.first == name), key=lambda c: names.index(c.second), default=None)
    return [c for c in (last, next_) if c]


def constraints(passes: Sequence[Pass], ran: Sequence[str] = ()) -> list[Constraint]:
    """What the passes say of each other's order, and of passes that ran before them."""
    there = {_name(p): p for p in passes}
    known = {*there, *ran}
    return [c for name in there for c in _said(name, there) if c.other in known and c.first != c.second]


def _said(name: str, there: dict[str, Pass]) -> Iterator[Constraint]:
    p = there[name]
    for word in ("after", "requires"):
        said: tuple[str, ...] = getattr(p, word)
        yield from (Constraint(other, name, name, word) for other in said if other != EVERY)
    yield from (Constraint(name, other, name, "before") for other in p.before if other != EVERY)
    if EVERY in p.after:
        yield from (
            Constraint(o, name, name, "after", True) for o, q in there.items() if EVERY not in q.after
        )
    if EVERY in p.before:
        yield from (
            Constraint(name, o, name, "before", True) for o, q in there.items() if EVERY not in q.before
        )


def _name(p: Pass) -> str:
    return name_of(type(p))


def _sorted(names: Iterable[str], every: Sequence[Constraint]) -> list[str]:
    """``names`` so that constraints among them hold; ``PipelineError`` where they contradict each other."""
    before = {name: [c.first for c in every if c.second == name] for name in names}
    known = {name: [o for o in others if o in before] for name, others in before.items()}
    try:
        return list(TopologicalSorter(known).static_order())
    except CycleError as error:
        cycle: list[str] = error.args[1]
        said = [next(c for c in every if (c.first, c.second) == pair) for pair in pairwise(cycle)]
    collide, left_out = ", ".join(map(str, said)), ", ".join(sorted(set(cycle)))
    raise PipelineError(f"no order will do: {collide}", hint=f"leave one of {left_out} out")


@dataclass(frozen=True)
class _Bound:
    """An index into a pipeline that a pass must keep to, for the sake of the pass ``name``, and ``why``.

    ``wish`` is the index that it would rather have: after every run of a pass that runs several times.
    """

    at: int
    name: str
    why: str
    wish: int


def _floor(name: str, passes: list[Pass], every: Sequence[Constraint]) -> _Bound | None:
    """After which pass ``name`` has to stand, and directly after which it would like to."""
    names = [_name(p) for p in passes]
    said = [c for c in every if c.second == name and c.first in names]
    if not said:
        return None
    last = max(said, key=lambda c: names.index(c.first))
    wish = max(len(names) - names[::-1].index(c.first) for c in said)
    return _Bound(names.index(last.first) + 1, last.first, f"{last.says} says {last.word}", wish)


def _ceiling(
    name: str, passes: list[Pass], every: Sequence[Constraint], waiting: Container[str]
) -> _Bound | None:
    """Before which pass ``name`` has to stand, be it for the sake of one that is still ``waiting``."""
    names = [_name(p) for p in passes]
    found: list[_Bound] = []
    for c in every:
        if c.first != name:
            continue
        why = f"{c.says} says {c.word}"
        if c.second in waiting:
            if far := _ceiling(c.second, passes, every, waiting):
                found.append(_Bound(far.at, far.name, f"{c}, {far.why}", far.at))
        elif c.second in names:
            found.append(_Bound(at := names.index(c.second), c.second, why, at))
    return min(found, key=lambda b: b.at, default=None)


def _slot(p: Pass, passes: list[Pass], low: _Bound | None, high: _Bound | None, new: Sequence[Pass]) -> int:
    """The index that suits ``p`` best, behind others of ``new``, and where nothing required is undone."""
    first, last = low.at if low else 0, high.at if high else len(passes)
    best = min(low.wish, last) if low else last
    while best < last and any(passes[best] is q for q in new):
        best += 1
    fits = [k for k in range(first, last + 1) if _missing([*passes[:k], p, *passes[k:]], ()) is None]
    return min(fits, key=lambda k: (abs(k - best), k), default=best)


def _missing(passes: Sequence[Pass], ran: Sequence[str]) -> PipelineError | None:
    """The first pass that requires what has not run, or what another has undone since."""
    valid: dict[str, str | None] = dict.fromkeys(ran)  # what has run, and which pass has undone it since
    for p in passes:
        name = _name(p)
        for other in p.requires:
            if other not in valid:
                return PipelineError(
                    f"{name} requires {other}, which has not run", hint=f"put {other} before {name}"
                )
            if undone := valid[other]:
                return PipelineError(
                    f"{name} requires {other}, which {undone} has undone", hint=f"put {other} after {undone}"
                )
        valid = {k: v or (None if p.keeps(k) else name) for k, v in valid.items()}
        valid[name] = None
    return None
