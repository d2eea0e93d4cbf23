"""Weights: which tensor of a checkpoint a parameter is, and what is done to it on the way in.

A pass that folds, joins, splits or rounds weights writes down an expression and touches no data. The expression is
run when an engine is built, one tensor at a time, straight from the mapped file. Its text is a Python call:

>>> show_weight(Cast(Concat((Tensor("a.{i}.w"), Tensor("b.{i}.w")), 0), ELEMS["f32"]))
'cast(concat(weight("a.{i}.w"), weight("b.{i}.w"), dim=0), f32)'
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from irloom.ir.elem import ELEMS, Elem, Quant, elem_of
from irloom.ir.errors import CheckpointError, IRError
from irloom.ir.types import Type

if TYPE_CHECKING:
    import torch

    from irloom.ir.checkpoint import Checkpoint
    from irloom.ir.quantized import QuantizedTensor


@dataclass(frozen=True)
class Tensor:
    """A tensor of the checkpoint; ``{i}`` in its name stands for the layer index."""

    name: str


@dataclass(frozen=True)
class Const:
    """A small tensor kept with the module, such as rotary frequencies."""

    name: str


@dataclass(frozen=True)
class Concat:
    """Parts joined along ``dim``."""

    parts: tuple[WeightExpr, ...]
    dim: int


@dataclass(frozen=True)
class Slice:
    """Entries ``start`` to ``stop`` of ``dim``."""

    x: WeightExpr
    dim: int
    start: int
    stop: int


@dataclass(frozen=True)
class Transpose:
    """A matrix, transposed."""

    x: WeightExpr


@dataclass(frozen=True)
class Reshape:
    """The same entries under other dims."""

    x: WeightExpr
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Cast:
    """Rounded to another element."""

    x: WeightExpr
    elem: Elem


@dataclass(frozen=True)
class Affine:
    """``x * scale + shift``, computed in f32 and rounded once to the element of ``x``."""

    x: WeightExpr
    scale: float
    shift: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and math.isfinite(self.shift)):
            raise IRError(f"affine: scale {self.scale} and shift {self.shift} must be finite")


@dataclass(frozen=True)
class Quantize:
    """Rounded to a scheme; where the file already stores exactly that scheme, its values as they are."""

    x: WeightExpr
    quant: Quant


WeightExpr = Tensor | Const | Concat | Slice | Transpose | Reshape | Cast | Affine | Quantize
Consts = Mapping[str, "torch.Tensor"]
NO_CONSTS: Consts = {}


def show_weight(expr: WeightExpr) -> str:
    """The text of an expression; ``parse_weight`` reads it back."""
    match expr:
        case Tensor(name):
            return f"weight({_quoted(name)})"
        case Const(name):
            return f"const({_quoted(name)})"
        case Concat(parts, dim):
            return f"concat({', '.join(map(show_weight, parts))}, dim={dim})"
        case Slice(x, dim, start, stop):
            return f"slice({show_weight(x)}, {dim}, {start}, {stop})"
        case Transpose(x):
            return f"transpose({show_weight(x)})"
        case Reshape(x, dims):
            return f"reshape({show_weight(x)}, {dims})"
        case Cast(x, elem):
            return f"cast({show_weight(x)}, {elem})"
        case Affine(x, scale, shift):
            return f"affine({show_weight(x)}, {scale!r}, {shift!r})"
        case Quantize(x, quant):
            return f"quantize({show_weight(x)}, {quant})"


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
