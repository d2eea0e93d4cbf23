"""What a pass is. Its file name is its name, its fields are its options, its docstring is its page."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from irloom.ir.graph import Module


class NoMatch(Exception):
    """Why a rewrite did not apply, with the place. It is reported, never swallowed."""


@dataclass
class Changes:
    """What a pass did: one line per change and per near miss, ``function.value: what``."""

    places: list[str] = field(default_factory=list[str])
    near_misses: list[str] = field(default_factory=list[str])

    def __len__(self) -> int:
        return len(self.places)

    def __iadd__(self, other: Changes) -> Changes:
        self.places += other.places
        self.near_misses += other.near_misses
        return self


@dataclass(frozen=True)
class Pass(ABC):
    """A step of a pipeline. Subclasses are frozen dataclasses in a file of their own under ``passes/``.

    ``after`` and ``before`` name passes that must not come later or earlier when both are in a pipeline; ``requires``
    names passes that must have run. ``lossy`` says that numbers change by design, within a budget of its own.
    """

    after: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()
    requires: ClassVar[tuple[str, ...]] = ()
    lossy: ClassVar[bool] = False

    @abstractmethod
    def run(self, m: Module) -> Changes:
        """Rewrite ``m`` in place; what changed, and what almost did."""

    def expected(self, m: Module, inputs: list[Any], outputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """What the rewritten module ``m`` should return, given what the old one returned on the same inputs.

        The same, unless the pass changes what a program returns (``gather-logits`` keeps last rows only).
        """
        return outputs
