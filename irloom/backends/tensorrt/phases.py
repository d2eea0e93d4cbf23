"""How far a build is: the builder tells of phases within phases, each with its steps."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class _Phase:
    name: str
    steps: int
    done: int = 0


@dataclass
class Phases:
    """The phases that are open, outermost first; ``most`` is the greatest share that was ever done.

    A phase counts as a part of the step that its parent is in, so a share only grows.

    >>> p = Phases()
    >>> p.start("Building engine", 4); p.step("Building engine", 0); p.start("Timing tactics", 2)
    >>> p.step("Timing tactics", 0)
    >>> p.share, p.now
    (0.375, 'Timing tactics')
    """

    open: list[_Phase] = field(default_factory=list[_Phase])
    most: float = 0.0

    def start(self, name: str, steps: int) -> None:
        """A phase of so many steps begins, within the last that is open."""
        self.open.append(_Phase(name, max(steps, 1)))

    def step(self, name: str, step: int) -> None:
        """Step number ``step``, from 0, of a phase is over, and so are the phases within it."""
        for phase in self.open:
            if phase.name == name:
                phase.done = min(step + 1, phase.steps)

    def finish(self, name: str) -> None:
        """A phase is over, and so are the phases within it."""
        for i, phase in enumerate(self.open):
            if phase.name == name:
                del self.open[i:]
                break

    @property
    def share(self) -> float:
        """What is done of the whole, 0 to 1."""
        inner = 0.0
        for phase in reversed(self.open):
            inner = min((phase.done + inner) / phase.steps, 1.0)
        self.most = max(self.most, inner)
        return self.most

    @property
    def now(self) -> str:
        """The innermost phase."""
        return self.open[-1].name if self.open else ""
