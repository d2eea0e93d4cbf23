"""A model's record: traced and taken through a pipeline, with no weight read."""

from __future__ import annotations

from pathlib import Path

from irloom.backends.artifact import EngineReader, is_engine
from irloom.backends.core import backend
from irloom.driver import Choice, passes_of, trace
from irloom.frontends.hf.hub import find
from irloom.ir.errors import CheckpointError
from irloom.ir.graph import Module
from irloom.ir.parse import parse
from irloom.passes import Record, run_pipeline


def recorded(
    model: str | Path, choice: Choice, dtype: str | None = None, trust_remote_code: bool = False
) -> Module | Record:
    """The record of the chosen pipeline on ``model``; its program alone where no pass runs, as of an engine.

    ``dtype`` is the element of weights and activations, by default the one that the target computes in.
    """
    path = find(str(model), trust_remote_code, weights=False)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory", hint="give a path or a hub id")
    if is_engine(path):
        return parse(EngineReader(path).read_text("module.irloom"))
    path = path.parent if path.name == "config.json" else path
    passes = passes_of(choice)
    m = trace(path, dtype or backend(choice.target).dtype, trust_remote_code=trust_remote_code)
    return run_pipeline(m, passes)[1] if passes else m
