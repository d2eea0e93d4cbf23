"""Weight expressions and their text.

A parameter's weight is a tensor of the checkpoint and what is done to it on the way in, as a Python call:

>>> show_weight(Cast(Concat((Tensor("a.{i}.w"), Tensor("b.{i}.w")), 0), ELEMS["f32"]))
'cast(concat(weight("a.{i}.w"), weight("b.{i}.w"), dim=0), f32)'
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.errors import IRError

_NUMBER = re.compile(r"\{i([+-]\d+)?\}")


@dataclass(frozen=True)
class Tensor:
    """A tensor of the checkpoint; ``{i}`` in its name is the layer's number, ``{i-1}`` the one before."""

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
    """A matrix, or each of a stack of matrices, transposed: the last two dims exchanged."""

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
class Scale:
    """``x`` times ``by``, a vector with one entry for each index of ``dim``: of a matrix [out, in], dim 1
    scales what a product reads and dim 0 what it gives. Computed in f32, rounded once to the element of
    ``x``.
    """

    x: WeightExpr
    by: WeightExpr
    dim: int


@dataclass(frozen=True)
class Exp:
    """``e ** x``, as decay rates are stored; computed in f32 and rounded once to the element of ``x``."""

    x: WeightExpr


@dataclass(frozen=True)
class Quantize:
    """Rounded to a scheme; where the file already stores exactly that scheme, its values as they are."""

    x: WeightExpr
    quant: Quant


WeightExpr = Tensor | Const | Concat | Slice | Transpose | Reshape | Cast | Affine | Scale | Exp | Quantize


def operands(expr: WeightExpr) -> tuple[WeightExpr, ...]:
    """The expressions that an expression is made of."""
    match expr:
        case Tensor() | Const():
            return ()
        case Concat(parts):
            return parts
        case Scale(x, by):
            return x, by
        case _:
            return (expr.x,)


def with_operands(expr: WeightExpr, new: Sequence[WeightExpr]) -> WeightExpr:
    """``expr`` with ``new`` for its operands, in their order."""
    match expr:
        case Tensor() | Const():
            return expr
        case Concat(_, dim):
            return Concat(tuple(new), dim)
        case Scale(_, _, dim):
            return Scale(new[0], new[1], dim)
        case _:
            return replace(expr, x=new[0])


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
        case Scale(x, by, dim):
            return f"scale({show_weight(x)}, {show_weight(by)}, {dim})"
        case Exp(x):
            return f"exp({show_weight(x)})"
        case Quantize(x, quant):
            return f"quantize({show_weight(x)}, {quant})"


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def parse_weight(node: ast.expr, quants: Mapping[str, Quant] | None = None) -> WeightExpr:
    """Read the text form back; ``quants`` are the schemes that the module header declares."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise _bad(node, "is not a call", f"one of {', '.join(_FORMS)}")
    name, args, keywords = node.func.id, list(node.args), {k.arg: k.value for k in node.keywords}
    if name not in _FORMS:
        raise _bad(node, f"`{name}` is unknown", f"one of {', '.join(_FORMS)}")
    form = _FORMS[name]
    if name == "concat":
        operands, literals = args, [keywords.pop("dim")] if "dim" in keywords else []
    else:
        operands, literals = args[: form.operands], args[form.operands :]
    if keywords or len(literals) != len(form.literals) or len(operands) < form.operands:
        raise _bad(node, "wrong number of arguments", f"{name}({form.usage})")
    parts = [parse_weight(x, quants) for x in operands]
    values = [_literal(node, x, kind, quants or {}) for x, kind in zip(literals, form.literals, strict=True)]
    return Concat(tuple(parts), *values) if name == "concat" else form.build(*parts, *values)


@dataclass(frozen=True)
class _Form:
    """How a call is read: so many expressions, then literals of these kinds."""

    build: Callable[..., WeightExpr]
    operands: int
    literals: tuple[str, ...]
    usage: str


_FORMS = {
    "weight": _Form(Tensor, 0, ("name",), '"name"'),
    "const": _Form(Const, 0, ("name",), '"name"'),
    "concat": _Form(Concat, 1, ("int",), "a, b, ..., dim=0"),
    "slice": _Form(Slice, 1, ("int", "int", "int"), "x, dim, start, stop"),
    "transpose": _Form(Transpose, 1, (), "x"),
    "reshape": _Form(Reshape, 1, ("dims",), "x, (2, 3)"),
    "cast": _Form(Cast, 1, ("elem",), "x, f32"),
    "affine": _Form(Affine, 1, ("number", "number"), "x, scale, shift"),
    "scale": _Form(Scale, 2, ("int",), "x, by, dim"),
    "exp": _Form(Exp, 1, (), "x"),
    "quantize": _Form(Quantize, 1, ("quant",), "x, scheme"),
}
_KINDS = {
    "name": "a string",
    "int": "an integer",
    "number": "a number",
    "dims": "a tuple of dims",
    "elem": "an element",
    "quant": "a quantized element of the header",
}


def _literal(call: ast.expr, node: ast.expr, kind: str, quants: Mapping[str, Quant]) -> Any:
    hint = ""
    if kind in {"elem", "quant"}:
        known: Mapping[str, Elem | Quant] = ELEMS if kind == "elem" else quants
        if isinstance(node, ast.Name) and node.id in known:
            return known[node.id]
        hint = f"known: {', '.join(known) or 'none'}"
    else:
        with contextlib.suppress(ValueError):
            value: Any = ast.literal_eval(node)
            if kind == "number" and type(value) in {int, float}:
                return float(value)
            if (kind == "name" and type(value) is str) or (kind == "int" and type(value) is int):
                return value
            if kind == "dims" and _is_dims(value):
                return value
    raise _bad(call, f"`{ast.unparse(node)}` is not {_KINDS[kind]}", hint)


def _is_dims(value: object) -> bool:
    if not isinstance(value, tuple):
        return False
    return all(type(d) is int and d >= 0 for d in cast("tuple[object, ...]", value))


def _bad(node: ast.expr, why: str, hint: str = "") -> IRError:
    return IRError(f"weight expression `{ast.unparse(node)}`: {why}", hint=hint)


def tensor_names(expr: WeightExpr, index: int | None = None) -> list[str]:
    """The checkpoint tensors that an expression reads, in order, for layer ``index``."""
    match expr:
        case Tensor(name):
            return [tensor_name(name, index)]
        case _:
            return [name for x in operands(expr) for name in tensor_names(x, index)]


def tensor_name(name: str, index: int | None) -> str:
    """``name`` with the layer's number in place of ``{i}``, and that of the layer before for ``{i-1}``.

    >>> tensor_name("layers.{i}.up", 4), tensor_name("layers.{i-1}.norm", 4)
    ('layers.4.up', 'layers.3.norm')
    """
    if index is None:
        if _NUMBER.search(name):
            raise IRError(f"weight: `{name}` needs a layer index", hint="its function is called without one")
        return name
    return _NUMBER.sub(lambda found: str(index + int(found[1] or 0)), name)


def numbered(offset: int) -> str:
    """What stands in a name for the number of the layer ``offset`` further on: ``{i}``, ``{i-1}``."""
    return f"{{i{offset:+}}}" if offset else "{i}"


def offsets(expr: WeightExpr | None) -> set[int]:
    """Which layers an expression reads, counted from the one it is bound in: 0 for ``{i}``, none without."""
    match expr:
        case None:
            return set()
        case Tensor(name):
            return {int(found or 0) for found in _NUMBER.findall(name)}
        case _:
            return {at for x in operands(expr) for at in offsets(x)}
