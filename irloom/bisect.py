"""The first wrong pass, in it the first wrong rewrite, and the smallest program that shows it, in a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import unified_diff
from pathlib import Path
from typing import Any

from irloom.driver import Choice, passes_of
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.graph import Module
from irloom.ir.show import show
from irloom.passes import Pass, parse_pipeline, spell
from irloom.passes.bisect import Culprit, find_culprit
from irloom.passes.reduce import Reduced, reduce
from irloom.passes.reproducer import Reproducer, read_reproducer
from irloom.passes.verified import Progress, Verified, run_as_far, verify_passes
from irloom.verify import HOW, How, opened, trial_of


@dataclass(frozen=True)
class Found:
    """What is wrong, the program that shows it, and the file that shows it again."""

    culprit: Culprit
    reduced: Reduced | None
    file: Path | None

    def diff(self) -> str:
        """The smallest program before and after the pass, as lines that went and came."""
        if self.reduced is None:
            return ""
        before, made = self.reduced.module, self.reduced.found.module
        if made is None:
            return show(before, header=False)
        rows = unified_diff(
            _lines(before), _lines(made), "before", f"after {self.culprit.name}", "", "", 99, ""
        )
        return "\n".join(rows)


def _lines(m: Module) -> list[str]:
    return show(m, header=False).splitlines()


def bisect(
    model: Any,
    choice: Choice | None = None,
    how: How = HOW,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Found | None:
    """What is wrong with the chosen pipeline on ``model``; None where every pass is right.

    The reproducer goes to ``out``, by default ``bisect-PASS.irloom`` in the working directory.
    """
    choice = choice or Choice()
    passes = passes_of(choice)
    m, weights = opened(model, choice, how)
    return bisect_module(m, passes, weights, how, out, progress)


def bisect_module(
    m: Module,
    passes: list[Pass],
    weights: Checkpoint | None = None,
    how: How = HOW,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Found | None:
    """As ``bisect``, of a program that is there already."""
    how = replace(how, by_layer=False)
    ran = run_as_far(m, passes)
    trial = trial_of(ran.modules, weights, how)
    culprit = find_culprit(ran, trial, progress)
    if culprit is None:
        return None
    reduced = None
    for source in (None, weights):  # real weights only where random ones do not show it
        reduced = reduce(culprit, lambda c, source=source: trial_of([c], source, how, trial.session))
        if reduced or weights is None:
            weights = source
            break
    module = reduced.module if reduced else culprit.good
    failure = reduced.found.failure if reduced and reduced.found.failure else culprit.failure
    made = Reproducer(module, spell(culprit.ran), culprit.place, failure.message, trial.session, weights)
    file = out or Path(f"bisect-{culprit.name}.irloom")
    made.write(file)
    return Found(culprit, reduced, file)


def rerun(path: Path, how: How = HOW, any_version: bool = False) -> Verified:
    """Verify a reproducer: its pass on its program, with its seed and its weights."""
    made = read_reproducer(path, any_version)
    passes = parse_pipeline(made.pipeline)
    ran = run_as_far(made.module, passes)
    how = replace(how, seed=made.session.seed)
    return verify_passes(ran, trial_of(ran.modules, made.weights, how, made.session))
