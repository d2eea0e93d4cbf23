"""What ``quantize`` rounds to: the scheme of an option, under a name of its own in the header."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from irloom.ir.elem import ELEMS, Quant
from irloom.ir.graph import Module

Dtype = Literal["int8", "int4", "fp8"]
Weights = Literal["channel", "tensor", "block"]
Activations = Literal["token", "tensor", "block", "plain"]

BASES = {"int8": ELEMS["i8"], "int4": ELEMS["i4"], "fp8": ELEMS["f8e4m3"]}
BLOCK = 128
"""Entries of a row, and rows of a weight, in a block of fp8."""
_SHAPES = {
    "channel": (0, 1),
    "token": (0, 1),
    "tensor": (0, 0),
    "block": (BLOCK, BLOCK),
}
"""Entries and rows that share a scale."""


@dataclass(frozen=True)
class Schemes:
    """``group`` and ``scale`` of integers; of fp8 what shares a scale in weights, and in activations."""

    group: int
    scale: str
    weights: Weights
    activations: Activations

    def weight(self, dtype: str) -> Quant:
        """What weights are rounded to."""
        if dtype != "fp8":
            return _named(BASES[dtype].name, Quant("", BASES[dtype], self.group, ELEMS[self.scale]))
        group, rows = _SHAPES[self.weights]
        return _named("f8", Quant("", BASES[dtype], group, ELEMS["f32"], rows=rows))

    @property
    def rows(self) -> Quant | None:
        """What rows are rounded to that fp8 weights multiply; None where they stay."""
        if self.activations == "plain":
            return None
        group, rows = _SHAPES[self.activations]
        return _named("f8", Quant("", BASES["fp8"], group, ELEMS["f32"], rows=min(rows, 1)))


def _named(base: str, q: Quant) -> Quant:
    """``i4g32``, ``f8row``, ``f8tensor``, ``f8g128``, ``f8b128``."""
    if q.group:
        return replace(q, name=f"{base}{'g' if q.rows == 1 else 'b'}{q.group}")
    return replace(q, name=f"{base}{'row' if q.rows else 'tensor'}")


def declare(m: Module, q: Quant) -> Quant:
    """``q`` under a name that is free in the header or already means it."""
    name, n = q.name, 1
    while m.quants.get(name, replace(q, name=name)) != replace(q, name=name):
        n += 1
        name = f"{q.name}_{n}"
    return replace(q, name=name)
