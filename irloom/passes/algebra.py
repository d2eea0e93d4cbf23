"""Identities of arithmetic that are exact in floating point: the rules of ``canonicalize`` about numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from irloom.ir.elem import Elem
from irloom.ir.graph import Value
from irloom.ir.op import OPS, Op
from irloom.ir.ops import (
    abs_,
    add,
    cast,
    div,
    floor,
    ge,
    gt,
    le,
    logical_and,
    logical_not,
    logical_or,
    lt,
    maximum,
    minimum,
    mul,
    pow_,
    relu,
    softcap,
    sub,
    tanh,
    where,
)
from irloom.ir.signature import Literal

from .core import NoMatch
from .rewrite import Rewrite, Site


class Identity(Rewrite):
    """A simpler spelling of the same value. Others may go on reading what it was made of."""

    shared = True
    quiet = True


@dataclass(frozen=True)
class Neutral(Identity):
    """``x * 1``, ``x / 1``, ``x + 0``, ``x - 0``, ``x ** 1`` are ``x``, but for the sign of a zero."""

    op: Op
    number: int

    def match(self, x: Value) -> Value:
        return self.op(x, self.number)

    def replace(self, x: Value) -> Value:
        return x


class DoubleNot(Identity):
    """``not not x`` is ``x``, for truth values."""

    def match(self, x: Value) -> Value:
        return logical_not(logical_not(x))

    def replace(self, x: Value) -> Value:
        return x


class Doubled(Identity):
    """``x + x`` is ``x * 2``."""

    def match(self, x: Value) -> Value:
        return add(x, x)

    def replace(self, x: Value) -> Value:
        return mul(x, 2)


@dataclass(frozen=True)
class OfItself(Identity):
    """The larger of ``x`` and ``x``, ``x and x``, is ``x``."""

    op: Op

    def match(self, x: Value) -> Value:
        return self.op(x, x)

    def replace(self, x: Value) -> Value:
        return x


@dataclass(frozen=True)
class Twice(Identity):
    """The absolute value of an absolute value is that; so is what ``relu`` and ``floor`` give."""

    op: Op

    def match(self, x: Value) -> Value:
        return self.op(self.op(x))

    def replace(self, x: Value) -> Value:
        return self.op(x)


class SameChoice(Identity):
    """A choice between ``x`` and ``x`` is none."""

    def match(self, condition: Value, x: Value) -> Value:
        return where(condition, x, x)

    def replace(self, x: Value) -> Value:
        return x


class NegatedChoice(Identity):
    """``a`` where not ``c``, else ``b``, is ``b`` where ``c``, else ``a``."""

    def match(self, c: Value, a: Any, b: Any) -> Value:
        return where(logical_not(c), a, b)

    def replace(self, c: Value, a: Any, b: Any) -> Value:
        return where(c, b, a)


@dataclass(frozen=True)
class Mirrored(Identity):
    """``2 < x`` is ``x > 2``."""

    op: Op
    other: Op

    def match(self, c: Literal, x: Value) -> Value:
        return self.op(c, x)

    def replace(self, c: Literal, x: Value) -> Value:
        return self.other(x, c)


@dataclass(frozen=True)
class BoundChain(Identity):
    """Of two bounds on the same side one counts: ``max(max(x, 1), 2)`` is ``max(x, 2)``."""

    op: Op

    def match(self, x: Value, a: Literal, b: Literal) -> Value:
        return self.op(self.op(x, a), b)

    def where(self, a: Literal, b: Literal) -> None:
        if math.isnan(a) or math.isnan(b):
            raise NoMatch("a bound is no number")

    def replace(self, x: Value, a: Literal, b: Literal) -> Value:
        return self.op(x, max(a, b) if self.op is maximum else min(a, b))


class OffsetChain(Identity):
    """``x + 1 + 2`` is ``x + 3``, for integers."""

    def match(self, x: Value, a: Literal, b: Literal) -> Value:
        return add(add(x, a), b)

    def where(self, x: Value, a: Literal, b: Literal) -> None:
        whole = x.type.plain.kind == "int" and type(a) is type(b) is int
        if not whole or abs(a + b) >= 1 << (x.type.plain.bits - 1):
            raise NoMatch(f"{a} + {b} may round or not fit")

    def replace(self, x: Value, a: Literal, b: Literal) -> Value:
        return add(x, a + b)


class ScaleChain(Identity):
    """``x * a * b`` is ``x * (a * b)`` where one is a power of two: it rounds nothing.

    Not in formats of few exponents, in which the product of two may be too small to have all its digits.
    """

    def match(self, x: Value, a: Literal, b: Literal) -> Value:
        return mul(mul(x, a), b)

    def where(self, x: Value, a: Literal, b: Literal) -> None:
        if x.type.plain.name not in ("f64", "f32", "bf16"):
            raise NoMatch(f"{x.type.plain} may lose digits")
        if not (_power_of_two(a) or _power_of_two(b)) or not math.isfinite(a * b):
            raise NoMatch(f"{a} * {b} rounds")

    def replace(self, x: Value, a: Literal, b: Literal) -> Value:
        return mul(x, a * b)


def _power_of_two(x: Literal) -> bool:
    return math.isfinite(x) and abs(math.frexp(x)[0]) == 0.5


@dataclass(frozen=True)
class NumberLast(Identity):
    """``2 * x`` is ``x * 2``: so that a pattern with a number has one spelling."""

    op: Op

    def match(self, c: Literal, x: Value) -> Value:
        return self.op(c, x)

    def where(self, site: Site) -> None:
        if isinstance(site.root.args[0], Value):
            raise NoMatch("the number is last")

    def replace(self, c: Literal, x: Value) -> Value:
        return self.op(x, c)


class SameCast(Identity):
    """A cast to the element that a value has is the value."""

    def match(self, x: Value, *, to: Elem) -> Value:
        return cast(x, to=to)

    def where(self, x: Value, to: Elem) -> None:
        if x.type.elem != to:
            raise NoMatch("another element")

    def replace(self, x: Value) -> Value:
        return x


class CastOfCast(Identity):
    """A cast of a cast is one cast, where the first lost nothing."""

    def match(self, x: Value, *, first: Elem, to: Elem) -> Value:
        return cast(cast(x, to=first), to=to)

    def where(self, x: Value, first: Elem) -> None:
        if not exact(x.type.plain, first):
            raise NoMatch(f"{first} does not hold every {x.type.elem}")

    def replace(self, x: Value, to: Elem) -> Value:
        return cast(x, to=to)


_HOLDS = {
    "bf16": "f32 f64",
    "f16": "f32 f64",
    "f32": "f64",
    "f8e4m3": "bf16 f16 f32 f64",
    "f8e5m2": "bf16 f16 f32 f64",
    "i32": "i64 f64",
    "i16": "i32 i64 f32 f64",
    "i8": "i16 i32 i64 bf16 f16 f32 f64",
    "u8": "i16 i32 i64 bf16 f16 f32 f64",
    "bool": "u8 i8 i16 i32 i64 bf16 f16 f32 f64",
}


def exact(x: Elem, to: Elem) -> bool:
    """Whether every value of ``x`` is one of ``to``.

    >>> from irloom.ir.elem import ELEMS
    >>> exact(ELEMS["bf16"], ELEMS["f32"]), exact(ELEMS["f32"], ELEMS["bf16"])
    (True, False)
    """
    return x == to or to.name in _HOLDS.get(x.name, "").split()


class Softcap(Rewrite):
    """``c * tanh(x / c)`` is ``softcap(x, cap=c)``."""

    def match(self, x: Value, c: Literal) -> Value:
        return mul(tanh(div(x, c)), c)

    def replace(self, x: Value, c: Literal) -> Value:
        return softcap(x, cap=c)


RULES: tuple[Rewrite, ...] = (
    *(NumberLast(op) for op in OPS if op.commutative),
    *(Neutral(op, 1) for op in (mul, div, pow_)),
    *(Neutral(op, 0) for op in (add, sub)),
    DoubleNot(),
    Doubled(),
    *(OfItself(op) for op in (maximum, minimum, logical_and, logical_or)),
    *(Twice(op) for op in (abs_, relu, floor)),
    SameChoice(),
    NegatedChoice(),
    *(Mirrored(op, other) for op, other in ((lt, gt), (gt, lt), (le, ge), (ge, le))),
    *(BoundChain(op) for op in (maximum, minimum)),
    OffsetChain(),
    ScaleChain(),
    SameCast(),
    CastOfCast(),
    Softcap(),
)
