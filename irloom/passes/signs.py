"""Signs that cancel, or that become part of a number: the rules of ``canonicalize`` about them."""

from __future__ import annotations

from irloom.ir.graph import Value
from irloom.ir.ops import abs_, add, mul, neg, sub
from irloom.ir.signature import Literal

from .algebra import Identity
from .rewrite import Rewrite


class DoubleNegation(Identity):
    """``-(-x)`` is ``x``."""

    def match(self, x: Value) -> Value:
        return neg(neg(x))

    def replace(self, x: Value) -> Value:
        return x


class AddNegated(Identity):
    """``x + (-y)`` is ``x - y``."""

    def match(self, x: Value, y: Value) -> Value:
        return add(x, neg(y))

    def replace(self, x: Value, y: Value) -> Value:
        return sub(x, y)


class SubNegated(Identity):
    """``x - (-y)`` is ``x + y``."""

    def match(self, x: Value, y: Value) -> Value:
        return sub(x, neg(y))

    def replace(self, x: Value, y: Value) -> Value:
        return add(x, y)


class NegatedDifference(Identity):
    """``-(x - y)`` is ``y - x``."""

    def match(self, x: Value, y: Value) -> Value:
        return neg(sub(x, y))

    def replace(self, x: Value, y: Value) -> Value:
        return sub(y, x)


class NegatedFactors(Identity):
    """``-x * -y`` is ``x * y``."""

    def match(self, x: Value, y: Value) -> Value:
        return mul(neg(x), neg(y))

    def replace(self, x: Value, y: Value) -> Value:
        return mul(x, y)


class ScaleOfNegated(Identity):
    """``-x * 2`` is ``x * -2``."""

    def match(self, x: Value, c: Literal) -> Value:
        return mul(neg(x), c)

    def replace(self, x: Value, c: Literal) -> Value:
        return mul(x, -c)


class NegatedScale(Identity):
    """``-(x * 2)`` is ``x * -2``."""

    def match(self, x: Value, c: Literal) -> Value:
        return neg(mul(x, c))

    def replace(self, x: Value, c: Literal) -> Value:
        return mul(x, -c)


class AbsOfNegated(Identity):
    """``|-x|`` is ``|x|``."""

    def match(self, x: Value) -> Value:
        return abs_(neg(x))

    def replace(self, x: Value) -> Value:
        return abs_(x)


class SubNumber(Identity):
    """``x - 2`` is ``x + -2``."""

    def match(self, x: Value, c: Literal) -> Value:
        return sub(x, c)

    def replace(self, x: Value, c: Literal) -> Value:
        return add(x, -c)


class MinusOne(Identity):
    """``x * -1`` is ``-x``."""

    def match(self, x: Value) -> Value:
        return mul(x, -1)

    def replace(self, x: Value) -> Value:
        return neg(x)


RULES: tuple[Rewrite, ...] = (
    DoubleNegation(),
    AddNegated(),
    SubNegated(),
    NegatedDifference(),
    NegatedFactors(),
    ScaleOfNegated(),
    NegatedScale(),
    AbsOfNegated(),
    SubNumber(),
    MinusOne(),
)
