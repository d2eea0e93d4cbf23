"""Weight expressions and their text.

A parameter's weight is a tensor of the checkpoint and what is done to it on the way in, as a Python call:

>>> show_weight(Cast(Concat((Tensor("a.{i}.w"), Tensor("b.{i}.w")), 0), ELEMS["f32"]))
'cast(concat(weight("a.{i}.w"), weight("b.{i}.w"), dim=0), f32)'
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.errors import IRError


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


def parse_weight(node: ast.expr, quants: Mapping[str, Quant] | None = None) -> WeightExpr:
    """Read the text form back; ``quants`` are the schemes that the module header declares."""

    def bad(why: str, hint: str = "") -> IRError:
        return IRError(f"weight expression `{ast.unparse(node)}`: {why}", hint=hint)

    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise bad("is not a call", hint=f"one of {', '.join(_FORMS)}")
    name = node.func.id
    if name not in _FORMS:
        raise bad(f"`{name}` is unknown", hint=f"one of {', '.join(_FORMS)}")
    operands, kinds = _FORMS[name]
    given = {k.arg: k.value for k in node.keywords}
    if name == "concat":
        operands = len(node.args)
        literals = [given.pop("dim")] if "dim" in given else []
    else:
        literals = node.args[operands:]
    if given or len(literals) != len(kinds) or len(node.args) < max(operands, 1):
        raise bad("wrong number of arguments", hint=f"{name}({_USAGE[name]})")
    parts = tuple(parse_weight(arg, quants) for arg in node.args[:operands])
    values = [_literal(arg, kind, quants or {}, bad) for arg, kind in zip(literals, kinds, strict=True)]
    return Concat(parts, values[0]) if name == "concat" else _BUILD[name](*parts, *values)


_FORMS: dict[
    str, tuple[int, tuple[str, ...]]
] = {  # how many expressions come first, then the kinds of literals
    "weight": (0, ("name",)),
    "const": (0, ("name",)),
    "concat": (0, ("int",)),
    "slice": (1, ("int", "int", "int")),
    "transpose": (1, ()),
    "reshape": (1, ("dims",)),
    "cast": (1, ("elem",)),
    "affine": (1, ("float", "float")),
    "quantize": (1, ("quant",)),
}
_USAGE = {
    "weight": '"name"', "const": '"name"', "concat": "a, b, ..., dim=0", "slice": "x, dim, start, stop",
    "transpose": "x", "reshape": "x, (2, 3)", "cast": "x, f32", "affine": "x, scale, shift",
    "quantize": "x, scheme",
}  # fmt: skip
_BUILD: dict[str, Callable[..., WeightExpr]] = {
    "weight": Tensor, "const": Const, "slice": Slice, "transpose": Transpose, "reshape": Reshape,
    "cast": Cast, "affine": Affine, "quantize": Quantize,
}  # fmt: skip


def _literal(node: ast.expr, kind: str, quants: Mapping[str, Quant], bad: Callable[..., IRError]) -> Any:
    if kind in {"elem", "quant"}:
        known: Mapping[str, Elem | Quant] = ELEMS if kind == "elem" else quants
        if not isinstance(node, ast.Name) or node.id not in known:
            what = "element" if kind == "elem" else "quantized element declared in the header"
            raise bad(f"`{ast.unparse(node)}` is no {what}", hint=f"known: {', '.join(known) or 'none'}")
        return known[node.id]
    try:
        value: Any = ast.literal_eval(node)
    except ValueError:
        raise bad(f"`{ast.unparse(node)}` is not a literal") from None
    if kind == "dims":
        entries = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else ("",)
        fits = all(type(d) is int and d >= 0 for d in entries)
    else:
        fits = type(value) in {"name": (str,), "int": (int,), "float": (int, float)}[kind]
    if not fits:
        raise bad(f"`{ast.unparse(node)}` is not {_KINDS[kind]}")
    return float(value) if kind == "float" else value


_KINDS = {"name": "a string", "int": "an integer", "float": "a number", "dims": "a tuple of dims"}


def tensor_names(expr: WeightExpr, index: int | None = None) -> list[str]:
    """The checkpoint tensors that an expression reads, in order, for layer ``index``."""
    match expr:
        case Tensor(name):
            return [tensor_name(name, index)]
        case Const():
            return []
        case Concat(parts):
            return [name for part in parts for name in tensor_names(part, index)]
        case _:
            return tensor_names(expr.x, index)


def tensor_name(name: str, index: int | None) -> str:
    """``name`` with the layer index in place of ``{i}``."""
    if index is None and "{i}" in name:
        raise IRError(f"weight: `{name}` needs a layer index", hint="its function is called without one")
    return name if index is None else name.replace("{i}", str(index))
