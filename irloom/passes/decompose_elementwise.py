"""``decompose`` for arithmetic, entry by entry."""

from __future__ import annotations

from irloom.ir.graph import Value
from irloom.ir.ops import (
    add,
    div,
    eq,
    exp,
    expm1,
    floor,
    floor_div,
    ge,
    gt,
    le,
    log,
    log1p,
    logical_not,
    logical_or,
    lt,
    mod,
    mul,
    ne,
    reciprocal,
    rsqrt,
    softcap,
    sqrt,
    sub,
    tanh,
    where,
)
from irloom.ir.signature import Literal

from .core import NoMatch
from .rewrite import Rewrite, Site
from .wide import rounded_as, to_elem, wide

Number = Value | Literal


def _wide(x: Number) -> Number:
    return wide(x) if isinstance(x, Value) else x


class Expm1(Rewrite):
    """``tanh(x / 2) * (e ** x + 1)``, which is ``e ** x - 1`` and keeps its digits where ``x`` is near 0."""

    def match(self, x: Value) -> Value:
        return expm1(x)

    def replace(self, x: Value) -> Value:
        h = wide(x)
        return rounded_as(mul(tanh(mul(h, 0.5)), add(exp(h), 1.0)), x)


class Log1p(Rewrite):
    """``log(u) * x / (u - 1)``, ``u = 1 + x`` rounded: what ``u`` loses is lost in both (Kahan, 1982)."""

    def match(self, x: Value) -> Value:
        return log1p(x)

    def replace(self, x: Value) -> Value:
        h = wide(x)
        u = add(h, 1.0)
        kept, y = sub(u, 1.0), log(u)
        near = where(eq(kept, 0.0), h, mul(y, div(h, kept)))
        return rounded_as(where(gt(h, 1.0), y, near), x)


class FloorDiv(Rewrite):
    """The quotient rounded down. Of integers none: f32 has no room for them."""

    def match(self, a: Number, b: Number) -> Value:
        return floor_div(a, b)

    def where(self, site: Site) -> None:
        if (t := site.root.result.type).plain.kind != "float":
            raise NoMatch(f"{site.root.result.name} is {t}, and quotients of integers are no f32")

    def replace(self, a: Number, b: Number, site: Site) -> Value:
        return to_elem(floor(div(_wide(a), _wide(b))), site.root.result.type.plain)


class Mod(Rewrite):
    """What is left of ``a`` when ``b`` has been taken as often as it fits."""

    def match(self, a: Number, b: Number) -> Value:
        return mod(a, b)

    def replace(self, a: Number, b: Number, site: Site) -> Value:
        t = site.root.result.type.plain
        if t.kind != "float":
            return sub(a, mul(floor_div(a, b), b))
        a, b = _wide(a), _wide(b)
        return to_elem(sub(a, mul(floor_div(a, b), b)), t)


class NotEqual(Rewrite):
    """Not equal."""

    def match(self, a: Number, b: Number) -> Value:
        return ne(a, b)

    def replace(self, a: Number, b: Number) -> Value:
        return logical_not(eq(a, b))


class AtLeast(Rewrite):
    """Greater or equal."""

    def match(self, a: Number, b: Number) -> Value:
        return ge(a, b)

    def replace(self, a: Number, b: Number) -> Value:
        return logical_or(gt(a, b), eq(a, b))


class AtMost(Rewrite):
    """Less or equal."""

    def match(self, a: Number, b: Number) -> Value:
        return le(a, b)

    def replace(self, a: Number, b: Number) -> Value:
        return logical_or(lt(a, b), eq(a, b))


class Rsqrt(Rewrite):
    """One over the root."""

    def match(self, x: Value) -> Value:
        return rsqrt(x)

    def replace(self, x: Value) -> Value:
        return rounded_as(reciprocal(sqrt(wide(x))), x)


class Softcap(Rewrite):
    """``cap * tanh(x / cap)``."""

    def match(self, x: Value, *, cap: float) -> Value:
        return softcap(x, cap=cap)

    def replace(self, x: Value, cap: float) -> Value:
        return mul(tanh(div(x, cap)), cap)


ELEMENTWISE_RULES = (
    Expm1(), Log1p(), FloorDiv(), Mod(), NotEqual(), AtLeast(), AtMost(), Rsqrt(), Softcap(),
)  # fmt: skip
