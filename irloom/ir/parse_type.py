"""Types, dims and attribute values, read from syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from .dims import Dim, sym
from .elem import CACHES, ELEMS, SEQS, AnyElem, Elem, Paged, Quant, State
from .errors import IRError
from .op import Attr
from .types import Type

_OPAQUE = {"seqs": SEQS, "caches": CACHES}
NO_QUANTS: Mapping[str, Quant] = {}
_FLOATS = {"inf": float("inf"), "nan": float("nan")}


class TypeReader:
    """Reads types; ``quants`` are the quantized elements declared so far (and is read when a type is)."""

    def __init__(self, quants: Mapping[str, Quant]) -> None:
        self.quants = quants

    def placed(self, e: ast.expr) -> tuple[Type, str | None]:
        """A type, and the buffer behind ``@`` when there is one."""
        match e:
            case ast.BinOp(left=left, op=ast.MatMult(), right=ast.Name(id=buffer)):
                return self.type(left), buffer
            case _:
                return self.type(e), None

    def type(self, e: ast.expr) -> Type:
        """A type such as ``partial[tp, bf16][T, 4096@tp]``."""
        if not isinstance(e, ast.Subscript):
            raise IRError(f"not a type: {ast.unparse(e)}", hint="an element and dims: f32[T, 640]")
        elem, partial = e.value, None
        match elem:
            case ast.Subscript(
                value=ast.Name(id="partial"), slice=ast.Tuple(elts=[ast.Name(id=axis), inner])
            ):
                elem, partial = inner, axis
            case _:
                pass
        rows = [self._axis(d) for d in (e.slice.elts if isinstance(e.slice, ast.Tuple) else [e.slice])]
        return Type(self.elem(elem), tuple(d for d, _ in rows), tuple(a for _, a in rows), partial)

    def _axis(self, e: ast.expr) -> tuple[Dim, str | None]:
        match e:
            case ast.BinOp(left=left, op=ast.MatMult(), right=ast.Name(id=axis)):
                return self.dim(left), axis
            case _:
                return self.dim(e), None

    def elem(self, e: ast.expr) -> AnyElem:
        """An element: plain, declared, a cache's, or an opaque one."""
        match e:
            case ast.Name(id=name) if name in ELEMS:
                return ELEMS[name]
            case ast.Name(id=name) if name in self.quants:
                return self.quants[name]
            case ast.Name(id=name) if name in _OPAQUE:
                return _OPAQUE[name]
            case ast.Subscript(value=ast.Name(id="paged"), slice=ast.Tuple(elts=[inner, page, *window])):
                last = integer(window[0]) if window else None
                return Paged(self.plain(inner), integer(page), last)
            case ast.Call(func=paged, args=[], keywords=given):
                elem, options = self.elem(paged), {k.arg or "**": integer(k.value) for k in given}
                if not isinstance(elem, Paged) or not options.keys() <= {"values", "stride"}:
                    raise IRError(
                        f"{ast.unparse(paged)} has no `{next(iter(options), '()')}`",
                        hint="paged[bf16, 16](values=128), paged[bf16, 16](stride=4)",
                    )
                return replace(elem, **options)
            case ast.Subscript(value=ast.Name(id="state"), slice=ast.Tuple(elts=[inner, every])):
                return State(self.plain(inner), integer(every))
            case _:
                name = ast.unparse(e)
                near = get_close_matches(name, [*ELEMS, *self.quants, *_OPAQUE], 1)
                hint = (
                    f"did you mean {near[0]!r}?"
                    if near
                    else "declare it in the header: i4g128 = quant(i4, group=128, scale=bf16)"
                )
                raise IRError(f"unknown element {name!r}", hint=hint)

    def plain(self, e: ast.expr) -> Elem:
        """A plain element."""
        elem = self.elem(e)
        if not isinstance(elem, Elem):
            raise IRError(f"{ast.unparse(e)} is not a plain element")
        return elem

    def dim(self, e: ast.expr) -> Dim:
        """An integer, a symbol, or a polynomial of them."""
        match e:
            case ast.Constant(value=int() as n) if not isinstance(n, bool):
                return n
            case ast.Name(id=name):
                return sym(name)
            case ast.UnaryOp(op=ast.USub(), operand=x):
                return self.dim(x) * -1
            case ast.BinOp(left=a, op=ast.Add(), right=b):
                return self.dim(a) + self.dim(b)
            case ast.BinOp(left=a, op=ast.Sub(), right=b):
                return self.dim(a) - self.dim(b)
            case ast.BinOp(left=a, op=ast.Mult(), right=b):
                return self.dim(a) * self.dim(b)
            case _:
                raise IRError(f"not a dim: {ast.unparse(e)}")


def integer(e: ast.expr) -> int:
    """A plain integer."""
    match e:
        case ast.Constant(value=int() as n) if not isinstance(n, bool):
            return n
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as n)) if not isinstance(n, bool):
            return -n
        case _:
            raise IRError(f"not an integer: {ast.unparse(e)}")


def literal_attr(e: ast.expr, quants: Mapping[str, Quant] = NO_QUANTS) -> Attr:
    """An attribute's value: a number, string, element, dim, or a tuple of them."""
    match e:
        case ast.Tuple(elts=items):
            return tuple(literal_attr(x, quants) for x in items)
        case ast.Name(id=name) if name in ELEMS:
            return ELEMS[name]
        case ast.Name(id=name) if name in quants:
            return quants[name]
        case ast.Name(id=name) if name in _FLOATS:
            return _FLOATS[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id=name)) if name in _FLOATS:
            return -_FLOATS[name]
        case ast.Constant() | ast.UnaryOp(operand=ast.Constant()):
            value: Any = ast.literal_eval(e)
            if value is None or isinstance(value, (int, float, str)):
                return value
            raise IRError(f"not the value of an attribute: {ast.unparse(e)}")
        case _:
            try:
                return TypeReader({}).dim(e)
            except IRError:
                raise IRError(
                    f"not the value of an attribute: {ast.unparse(e)}", hint="a number, text, dim, or element"
                ) from None
