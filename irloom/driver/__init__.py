"""From a model to an engine: trace, run the pipeline, build, open. What the API and all commands call."""

from irloom.backends.core import backend, loadable
from irloom.passes import run_pipeline

from .core import compile, engine_for, lowered, program, record_of, rewritten, staged, trace
from .llm import LLM
from .load import Load
from .measure import Figures, Own, measure
from .pipelines import Choice, available, own_passes, passes_of, targets, until
from .roofline import Roofline, measured, roofline

__all__ = [
    "LLM",
    "Choice",
    "Figures",
    "Load",
    "Own",
    "Roofline",
    "available",
    "backend",
    "compile",
    "engine_for",
    "loadable",
    "lowered",
    "measure",
    "measured",
    "own_passes",
    "passes_of",
    "program",
    "record_of",
    "rewritten",
    "roofline",
    "run_pipeline",
    "staged",
    "targets",
    "trace",
    "until",
]
