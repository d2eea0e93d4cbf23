"""A model's record: traced and taken through a pipeline; if asked, run before and after every pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from irloom.backends.artifact import EngineReader, is_engine
from irloom.backends.core import backend
from irloom.driver import Choice, passes_of, trace
from irloom.frontends.hf.hub import find
from irloom.ir.errors import CheckpointError, IrloomError
from irloom.ir.graph import Module
from irloom.ir.parse import parse
from irloom.passes import Record, run_pipeline
from irloom.passes.node_errors import node_errors
from irloom.passes.verified import Progress, verify_passes
from irloom.verify import How, prepared

from .build import Errors


@dataclass
class Shown:
    """What a page shows: a record, or a program alone; errors of values by the number of a step.

    ``wrong`` are the passes that moved the numbers too far, or raised, and what there is to say of them.
    """

    what: Module | Record
    errors: dict[int, Errors] = field(default_factory=dict[int, Errors])
    wrong: dict[str, str] = field(default_factory=dict[str, str])


def recorded(model: str | Path, choice: Choice, how: How) -> Shown:
    """The record of the chosen pipeline on ``model``; its program alone where no pass runs, as of an engine.

    Of ``how`` only layers, element and trust count: no weight is read.
    """
    path = find(str(model), how.trust, weights=False)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory", hint="give a path or a hub id")
    if is_engine(path):
        return Shown(parse(EngineReader(path).read_text("module.irloom")))
    path = path.parent if path.name == "config.json" else path
    passes = passes_of(choice)
    m = trace(path, how.dtype or backend(choice.target).dtype, how.layers, how.trust)
    return Shown(run_pipeline(m, passes)[1] if passes else m)


def verified(model: str | Path, choice: Choice, how: How, progress: Progress | None = None) -> Shown:
    """The same, as far as the pipeline comes, with each pass verified and the error of every value."""
    ran, trial = prepared(model, choice, how)
    found = verify_passes(ran, trial, progress=progress)
    shown = Shown(found.record if found.record.steps else ran.start)
    for row in found.rows:
        if not row.ok:
            shown.wrong[row.text] = str(row.error or (row.compared and row.compared.report))
    for i, step in enumerate(found.record.steps):
        if progress:
            progress("errors", i, len(found.record.steps))
        try:
            shown.errors[i] = node_errors(step, trial.weights) if step.changes.places else {}
        except IrloomError as error:  # a program that does not run: its pass is among the wrong ones
            shown.wrong.setdefault(step.text, str(error))
    return shown
