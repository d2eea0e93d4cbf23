"""Rewriting a program: the framework, and one file per pass."""

from .core import Changes, Fuel, NoMatch, Pass, limited, spend
from .pipeline import check_order, parse_pipeline, run_pipeline, spell
from .record import Record, Step
from .registry import PASSES, available, load, load_plugin, name_of, page
from .rewrite import Rewrite, Site, apply

__all__ = [
    "PASSES",
    "Changes",
    "Fuel",
    "NoMatch",
    "Pass",
    "Record",
    "Rewrite",
    "Site",
    "Step",
    "apply",
    "available",
    "check_order",
    "limited",
    "load",
    "load_plugin",
    "name_of",
    "page",
    "parse_pipeline",
    "run_pipeline",
    "spell",
    "spend",
]
