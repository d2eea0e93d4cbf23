"""The record of a run: what each pass was, did and almost did. Dumps, diffs and reports all read it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from irloom.ir.graph import Module
from irloom.ir.show import show

from .core import Changes, Pass
from .near_miss import NearMiss
from .report import Report


@dataclass
class Step:
    """One pass of a run: its name and options, the module before and after it, its changes and its seconds.

    The modules are copies: reading them later shows what was, whatever has happened to the program since.
    One step's ``after`` is the next one's ``before``, so nothing may change them.
    ``numerics`` is what the pass did to the numbers, once someone has verified it (see ``verified``).
    """

    name: str
    text: str
    before: Module
    after: Module
    changes: Changes
    seconds: float
    ran: Pass
    numerics: Report | None = None

    @cached_property
    def text_before(self) -> str:
        """The program as the pass found it; written when it is first asked for."""
        return show(self.before)

    @cached_property
    def text_after(self) -> str:
        """The program as the pass left it."""
        return show(self.after)

    @cached_property
    def idle(self) -> bool:
        """Whether the pass tells of changes, but the program is as it was: its count is wrong."""
        return bool(self.changes.places) and replace(self.after, passes=self.before.passes) == self.before

    def __str__(self) -> str:
        near = f", {len(self.changes.near_misses)} near misses" if self.changes.near_misses else ""
        idle = " told, but the program is as it was" if self.idle else ""
        return f"{self.text}: {len(self.changes)} changes{idle}{near} ({self.seconds * 1e3:.0f} ms)"


@dataclass
class Record:
    """The steps of a run, in order."""

    steps: list[Step] = field(default_factory=list[Step])

    def step(self, name: str) -> Step:
        """The last step of the pass called ``name``; ``KeyError`` if it did not run."""
        for s in reversed(self.steps):
            if s.name == name:
                return s
        raise KeyError(name)

    @property
    def seconds(self) -> float:
        """Time spent in passes and in verifying what they left."""
        return sum(s.seconds for s in self.steps)

    @property
    def near_misses(self) -> list[tuple[str, NearMiss]]:
        """Every near miss with the name of its pass; of one pass the closest first."""
        return [(s.name, miss) for s in self.steps for miss in s.changes.near_misses]

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps))
