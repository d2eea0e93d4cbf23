"""Choices by the clock: of several ways to run one product, the fastest at its shape on this GPU.

A choice is timed once a machine, the first time that its shape runs outside of a capture, and kept on disk
by GPU, versions and kernel sources: a second start reads it. Without a GPU, or while a graph is captured,
nothing is timed, and the first candidate stands in until something better is known.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from irloom.backends.locks import locked

from .alike import alike
from .clock import microseconds, sustained

T = TypeVar("T")

MARGIN = 0.98
"""A later candidate is chosen when it takes less than this of the best one's time: noise decides nothing."""

LONG = 40.0
"""Microseconds of the best from which on ``heavy`` candidates are timed for longer."""
NEAR = 1.15
"""What takes so many times the best one's in a burst is not the fastest of those that run for longer."""

Run = Callable[[], object]
Clock = Callable[[Run, float], float]
Sustained = Callable[[Sequence[Run]], Sequence[float]]

_TRIALS = threading.local()  # whether this thread tries candidates out


def choose(
    name: str,
    key: tuple[object, ...],
    candidates: Sequence[T],
    run: Callable[[T], object],
    heavy: bool = False,
    last: T | None = None,
) -> T:
    """The fastest of ``candidates`` for ``name`` at ``key``: whatever decides how long ``run`` takes.

    ``run`` launches a candidate on tensors whose contents do not matter, and whose results nobody reads; it
    is called from several threads, so that kernels are compiled side by side. A candidate that fails (too
    much shared memory, not on this GPU) is passed over; when all fail, ``last`` is taken, which is not timed
    against them, or else the first one's error is raised. Candidates are told apart by their ``repr``.
    Scratch memory is ``run``'s own: no ``Workspace`` is for several threads. Where rows must be alike, the
    first candidate is taken.

    ``heavy`` are those that multiply all the time, and by the second: at the card's power limit. Those that
    are near the best in a short burst are timed as long as it takes for that limit to act.
    """
    if alike():
        return candidates[0]
    return tuner().choose(name, key, candidates, run, heavy, last)


@contextmanager
def untimed() -> Iterator[None]:
    """Inside, this thread times nothing: the first candidate stands in where nothing is known."""
    before, _TRIALS.active = getattr(_TRIALS, "active", False), True
    try:
        yield
    finally:
        _TRIALS.active = before


def settled(name: str, key: tuple[object, ...]) -> Any:
    """What this process has chosen before, None where it has not: who asks first lists no candidates."""
    return tuner().settled.get((name, key))


@cache
def tuner() -> Tuner:
    """What is known on this machine's GPU."""
    return Tuner(_file(), microseconds if torch.cuda.is_available() else None, sustained)


class Tuner:
    """Choices in ``file``; ``clock`` tells how long a run takes, and need not be exact where that is more
    than it is given; None where nothing can be timed. ``sustained`` tells it of runs that go on for long.
    """

    def __init__(self, file: Path, clock: Clock | None, sustained: Sustained | None = None) -> None:
        self.file, self.clock, self.sustained = file, clock, sustained
        self.settled: dict[tuple[str, tuple[object, ...]], object] = {}
        self.rehearsing = False

    @cached_property
    def known(self) -> dict[str, str]:
        """All choices, by name and key: read once, added to by ``keep``."""
        return _read(self.file) if self.clock else {}

    def choose(
        self,
        name: str,
        key: tuple[object, ...],
        candidates: Sequence[T],
        run: Callable[[T], object],
        heavy: bool = False,
        last: T | None = None,
    ) -> T:
        """See ``tuning.choose``."""
        some = candidates if last is None else (*candidates, last)
        if not self.rehearsing and (before := self.settled.get((name, key))) in some:
            return some[some.index(before)]
        chosen = some[0] if len(some) == 1 else self._known(f"{name} {key}", some)
        if chosen is None and self.rehearsing:
            _each(candidates, run)
            chosen = candidates[0]
        elif chosen is None and self._may_time():
            errors = _errors(candidates, run)
            short = any(isinstance(e, torch.OutOfMemoryError) for e in errors)
            fails = last is not None and None not in errors and not short
            chosen = last if fails else self.fastest(candidates, errors, run, heavy)
            if not short:  # there is more another time
                self.keep({f"{name} {key}": repr(chosen)})
        if chosen is None:
            return candidates[0]
        self.settled[name, key] = chosen
        return chosen

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Inside, candidates that would be timed are run once, and the first stands in for the fastest."""
        settled, self.settled, self.rehearsing = self.settled, {}, self.clock is not None
        try:
            yield
        finally:
            self.settled, self.rehearsing = settled, False

    def _known(self, text: str, candidates: Sequence[T]) -> T | None:
        chosen = self.known.get(text)
        return next((c for c in candidates if chosen and repr(c) == chosen), None)

    def _may_time(self) -> bool:
        return self.clock is not None and not _capturing() and not getattr(_TRIALS, "active", False)

    def fastest(
        self,
        candidates: Sequence[T],
        errors: Sequence[Exception | None],
        run: Callable[[T], object],
        heavy: bool = False,
    ) -> T:
        """The first candidate without an error that no other beats by more than noise."""
        good = [c for c, error in zip(candidates, errors, strict=True) if error is None]
        if not good:
            raise next(e for e in errors if e is not None)
        times = self._burst([partial(run, c) for c in good])
        least = min(times)
        near = [c for c, took in zip(good, times, strict=True) if took <= least * NEAR]
        if heavy and self.sustained and least >= LONG and len(near) > 1:
            good, times = near, self.sustained([partial(run, c) for c in near])
        return _first_of_least(good, times)

    def _burst(self, runs: Sequence[Run]) -> list[float]:
        assert self.clock is not None
        times: list[float] = []
        for run in runs:
            times.append(self.clock(run, min(times, default=float("inf"))))
        return times

    def fill(self, brought: dict[str, str]) -> None:
        """Know what an engine has ``brought`` where nothing is known: what was timed here since stays."""
        self.known.update({name: how for name, how in _read(self.file).items() if name not in self.known})
        if new := {name: how for name, how in brought.items() if name not in self.known}:
            self.keep(new)

    def keep(self, new: dict[str, str]) -> None:
        """Know ``new`` from here on, and after this process.

        Where the folder cannot be written, it is known in this process alone.
        """
        self.known.update(new)
        with suppress(OSError), locked(self.file.with_suffix(".lock")):
            part = self.file.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(_read(self.file) | new, indent=0, sort_keys=True))
            part.replace(self.file)


def _first_of_least(candidates: Sequence[T], times: Sequence[float]) -> T:
    """The fastest, where each has to beat those in front of it by more than noise."""
    best, least = candidates[0], times[0]
    for candidate, took in zip(candidates, times, strict=True):
        if took < least * MARGIN:
            best, least = candidate, took
    return best


def _each(candidates: Sequence[T], run: Callable[[T], object]) -> None:
    """Run every candidate; those that cannot be run say so when they are timed."""
    for candidate in candidates:
        with suppress(Exception):
            run(candidate)


def _errors(candidates: Sequence[T], run: Callable[[T], object]) -> list[Exception | None]:
    """What each candidate's first run ends in. Threads run all but the first, since most of it is the
    compiler's time; choices that runs make on their way are the first one's, or stay open.
    """
    gpu = torch.cuda.is_available()
    stream, inference = torch.cuda.current_stream() if gpu else None, torch.is_inference_mode_enabled()

    def first(candidate: T) -> Exception | None:
        try:
            with torch.inference_mode(inference), torch.cuda.stream(stream):
                run(candidate)
        except Exception as e:  # what a compiler, a driver or a library says of a candidate is its own
            return e
        return None

    def beside(candidate: T) -> Exception | None:
        _TRIALS.active = True
        return first(candidate)

    error = first(candidates[0])
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        errors = [error, *pool.map(beside, candidates[1:])]
    if gpu:
        torch.cuda.synchronize()
    return errors


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _file() -> Path:
    """Where choices are kept that hold for this GPU, these versions and these sources.

    In ``$XDG_CACHE_HOME/irloom/tuning``, by default under ``~/.cache``.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(f"{torch.__version__} {torch.version.cuda}".encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return home / "irloom" / "tuning" / f"{gpu.replace(' ', '-')}-{digest.hexdigest()[:16]}.json"


def _read(file: Path) -> dict[str, str]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
