"""Rewriting a program: the framework, and one file per pass."""

from .core import Changes, Fuel, NoMatch, Pass, limited, spend
from .order import check_order, place
from .pipeline import parse_pipeline, run_pipeline, spell
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
    "place",
    "run_pipeline",
    "spell",
    "spend",
]
