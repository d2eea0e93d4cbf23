"""Rewriting a program: the framework, and one file per pass."""

from .across import apply_across
from .core import Changes, Fuel, NoMatch, Pass, limited, spend
from .near_miss import NearMiss
from .order import check_order, place, reasons
from .pipeline import parse_pipeline, run_pipeline, spell
from .record import Record, Step
from .registry import PASSES, available, load, load_plugin, name_of, page
from .rewrite import Rewrite, Site, apply
from .rewrite_pass import RewritePass

__all__ = [
    "PASSES",
    "Changes",
    "Fuel",
    "NearMiss",
    "NoMatch",
    "Pass",
    "Record",
    "Rewrite",
    "RewritePass",
    "Site",
    "Step",
    "apply",
    "apply_across",
    "available",
    "check_order",
    "limited",
    "load",
    "load_plugin",
    "name_of",
    "page",
    "parse_pipeline",
    "place",
    "reasons",
    "run_pipeline",
    "spell",
    "spend",
]
