"""What a pass is. Its file name is its name, its fields are its options, its docstring is its page."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar

from irloom.ir.errors import PipelineError
from irloom.ir.graph import Module

from .near_miss import NearMiss

ORDER = {"after", "before", "requires", "preserves", "targets"}


class NoMatch(Exception):
    """Why a rewrite did not apply, with the place. It is reported, never swallowed."""


@dataclass
class Changes:
    """What a pass did, a line per change (``function.value: what``), and what it almost did."""

    places: list[str] = field(default_factory=list[str])
    near_misses: list[NearMiss] = field(default_factory=list[NearMiss])

    def __len__(self) -> int:
        return len(self.places)

    def __iadd__(self, other: Changes) -> Changes:
        self.places += other.places
        self.near_misses += other.near_misses
        return self


@dataclass(frozen=True)
class Pass(ABC):
    """A step of a pipeline. Subclasses are frozen dataclasses in a file of their own under ``passes/``.

    ``after`` and ``before`` name passes that must not come later or earlier when both are in a pipeline;
    ``"*"`` is every other pass of it. ``requires`` names passes that must have run, and whose work every pass
    since preserves: ``preserves`` lists those, ``"*"`` for everything, ``"-outline"`` for an exception.
    ``lossy`` says that numbers change by design. ``targets`` are those whose default pipelines the pass of a
    plugin joins by itself, at the place that this order gives it (see ``order.place``).
    """

    after: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()
    requires: ClassVar[tuple[str, ...]] = ()
    preserves: ClassVar[tuple[str, ...]] = ("*",)
    lossy: ClassVar[bool] = False
    targets: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse what would be ignored in silence: a name where a tuple of names belongs, or an option."""
        super().__init_subclass__(**kwargs)
        for word in ORDER & vars(cls).keys():
            said = vars(cls)[word]
            if isinstance(said, str):
                raise PipelineError(f"{cls.__name__}: `{word}` is {said!r}, not a tuple: ({said!r},)")
            if "ClassVar" not in str(vars(cls).get("__annotations__", {}).get(word, "ClassVar")):
                raise PipelineError(f"{cls.__name__}: `{word}` has a type, as options do: {word} = {said!r}")

    @abstractmethod
    def run(self, m: Module) -> Changes:
        """Rewrite ``m`` in place; what changed, and what almost did."""

    def keeps(self, other: str) -> bool:
        """Whether this pass says that it preserves the work of the pass called ``other``."""
        return other in self.preserves or ("*" in self.preserves and f"-{other}" not in self.preserves)

    def holds(self, m: Module) -> str | None:
        """Why what this pass sees to is not so in ``m``; None where it is.

        Asked when the pass has run, and where it is so then, again after every later pass that preserves it.
        """
        return None

    def expected(self, m: Module, inputs: list[Any], outputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """What the rewritten module ``m`` should return, given what the old one returned on the same inputs.

        The same, unless the pass changes what a program returns (``gather-logits`` keeps last rows). What
        the new program returns beyond this (its caches, after ``kv-cache``) has nothing to be compared with.
        """
        return outputs

    def budget(self) -> float:
        """For a lossy pass: how far the outputs of one layer may move, as a share of their norm."""
        return 0.0


@dataclass
class Fuel:
    """How many more changes may be made; ``spent`` counts them."""

    left: int | None
    spent: int = 0


_FUEL: ContextVar[Fuel | None] = ContextVar("irloom_fuel", default=None)


@contextmanager
def limited(changes: int | None) -> Generator[Fuel]:
    """Inside the block passes make only the first ``changes`` changes (None: no limit)."""
    fuel = Fuel(changes)
    token = _FUEL.set(fuel)
    try:
        yield fuel
    finally:
        _FUEL.reset(token)


def has_fuel() -> bool:
    """Whether ``spend`` would say yes: asked before code that may raise for a change that it prepares."""
    fuel = _FUEL.get()
    return fuel is None or fuel.left is None or fuel.spent < fuel.left


def spend() -> bool:
    """Whether one more change may be made; asked before each, so that ``bisect`` can find a bad one."""
    if not has_fuel():
        return False
    if (fuel := _FUEL.get()) is not None:
        fuel.spent += 1
    return True
