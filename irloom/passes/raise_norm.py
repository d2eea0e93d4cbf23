"""Rules of ``raise`` for normalizations that a model spells out."""

from __future__ import annotations

from dataclasses import dataclass

from irloom.ir.dims import Dim
from irloom.ir.elem import Elem
from irloom.ir.graph import Param, Value
from irloom.ir.op import Op
from irloom.ir.ops import (
    add,
    cast,
    div,
    l2_norm,
    layer_norm,
    linear,
    mean,
    mul,
    pow_,
    reciprocal,
    reshape,
    rms_norm,
    rsqrt,
    sqrt,
    sub,
    sum_,
)
from irloom.ir.signature import Literal

from .core import NoMatch
from .rewrite import Rewrite, Site


class Spelling(Rewrite):
    """Another spelling of the same, off by rounding. Others may go on reading what it was made of."""

    shared = True
    quiet = True


class Square(Spelling):
    """``x * x`` is ``x ** 2``."""

    def match(self, x: Value) -> Value:
        return mul(x, x)

    def replace(self, x: Value) -> Value:
        return pow_(x, 2)


class Root(Spelling):
    """``x ** 0.5`` is ``sqrt(x)``."""

    def match(self, x: Value) -> Value:
        return pow_(x, 0.5)

    def replace(self, x: Value) -> Value:
        return sqrt(x)


class InverseRoot(Spelling):
    """``x ** -0.5`` is ``rsqrt(x)``."""

    def match(self, x: Value) -> Value:
        return pow_(x, -0.5)

    def replace(self, x: Value) -> Value:
        return rsqrt(x)


class OneOverRoot(Spelling):
    """``1 / sqrt(x)`` is ``rsqrt(x)``."""

    def match(self, x: Value) -> Value:
        return reciprocal(sqrt(x))

    def replace(self, x: Value) -> Value:
        return rsqrt(x)


class OverRoot(Spelling):
    """``x / sqrt(y)`` is ``x * rsqrt(y)``."""

    def match(self, x: Value, y: Value) -> Value:
        return div(x, sqrt(y))

    def replace(self, x: Value, y: Value) -> Value:
        return mul(x, rsqrt(y))


class SumOverCount(Spelling):
    """A sum over as many entries as it has is their mean."""

    def match(self, x: Value, n: Literal, *, dim: int, keep: bool) -> Value:
        return div(sum_(x, dim=dim, keep=keep), n)

    def where(self, x: Value, n: float, dim: int) -> None:
        if x.type.dims[dim] != n:
            raise NoMatch(f"{x.type.dims[dim]} entries over {n}")

    def replace(self, x: Value, dim: int, keep: bool) -> Value:
        return mean(x, dim=dim, keep=keep)


class RmsNorm(Rewrite):
    """Rows over the root of their mean square."""

    def match(self, x: Value, eps: Literal) -> Value:
        return mul(x, rsqrt(add(mean(pow_(x, 2)), eps)))

    def replace(self, x: Value, eps: float) -> Value:
        return rms_norm(x, eps=eps)


class L2Norm(Rewrite):
    """Rows over their length."""

    quiet = True

    def match(self, x: Value, eps: Literal) -> Value:
        return mul(x, rsqrt(add(sum_(pow_(x, 2)), eps)))

    def replace(self, x: Value, eps: float) -> Value:
        return l2_norm(x, eps=eps)


class LateRmsNorm(Rewrite):
    """The norm of a linear's input, multiplied with its result: a row's scale may as well come first."""

    quiet = True

    def match(self, x: Value, w: Value, eps: Literal) -> Value:
        return mul(linear(x, w), rsqrt(add(mean(pow_(x, 2)), eps)))

    def replace(self, x: Value, w: Value, eps: float) -> Value:
        return linear(rms_norm(x, eps=eps), w)


class LayerNorm(Rewrite):
    """An RMS norm of what is left after taking off the mean."""

    def match(self, x: Value, *, eps: float) -> Value:
        return rms_norm(sub(x, mean(x)), eps=eps)

    def replace(self, x: Value, eps: float) -> Value:
        return layer_norm(x, eps=eps)


@dataclass(frozen=True)
class Scaled(Rewrite):
    """The weight of a norm."""

    norm: Op
    quiet = True

    def match(self, x: Value, w: Param, *, eps: float, groups: int) -> Value:
        return mul(self.norm(x, eps=eps, groups=groups), w)

    def where(self, x: Value, w: Param) -> None:
        _per_feature(x, w)

    def replace(self, x: Value, w: Param, eps: float, groups: int) -> Value:
        return self.norm(x, w, eps=eps, groups=groups)


@dataclass(frozen=True)
class Grouped(Rewrite):
    """A norm of parts of a row, and the weight of the row."""

    norm: Op
    quiet = True

    def match(self, x: Value, w: Param, *, eps: float, dims: tuple[Dim, ...]) -> Value:
        return mul(reshape(self.norm(x, eps=eps), dims=dims), w)

    def where(self, x: Value, w: Param, dims: tuple[Dim, ...]) -> None:
        parts, row = x.type.dims[-1], dims[-1]
        if w.weight is None or w.type.dims != (row,):
            raise NoMatch(f"{w.name} is {w.type}, not one number for each of the {row} features of a row")
        if not isinstance(row, int) or not isinstance(parts, int) or row % parts:
            raise NoMatch(f"a row of {row} is no whole number of parts of {parts}")

    def replace(self, x: Value, w: Param, eps: float, dims: tuple[Dim, ...]) -> Value:
        groups = int(str(dims[-1])) // int(str(x.type.dims[-1]))
        return self.norm(reshape(x, dims=dims), w, eps=eps, groups=groups)


@dataclass(frozen=True)
class PerHead(Rewrite):
    """A norm of heads, each with a weight of its own: a row of all heads in as many groups."""

    norm: Op
    quiet = True

    def match(self, x: Value, w: Param, *, eps: float) -> Value:
        return mul(self.norm(x, eps=eps), w)

    def where(self, x: Value, w: Param) -> None:
        if w.weight is None or x.type.rank < 3 or w.type.dims != x.type.dims[-2:]:
            raise NoMatch(f"{w.name} is {w.type}, not one number per head and feature of {x.type}")

    def replace(self, x: Value, w: Param, eps: float) -> Value:
        heads = int(str(x.type.dims[-2]))
        row = (*x.type.dims[:-2], heads * x.type.dims[-1])
        flat = self.norm(reshape(x, dims=row), reshape(w, dims=row[-1:]), eps=eps, groups=heads)
        return reshape(flat, dims=x.type.dims)


class NumberInWeight(Rewrite):
    """A number that a norm with a weight is multiplied with is part of the weight."""

    quiet = True

    def match(self, x: Value, w: Param, c: Literal, *, eps: float, groups: int) -> Value:
        return mul(rms_norm(x, w, eps=eps, groups=groups), c)

    def where(self, w: Param, site: Site) -> None:
        if w.weight is None or len(site.readers(w)) > 1:
            raise NoMatch(f"{w.name} is no weight of this norm alone")

    def replace(self, x: Value, w: Param, c: float, eps: float, groups: int) -> Value:
        return rms_norm(x, mul(w, c), eps=eps, groups=groups)


class ShiftedLayerNorm(Rewrite):
    """The bias of a layer norm."""

    quiet = True

    def match(self, x: Value, w: Param, b: Param, *, eps: float, groups: int) -> Value:
        return add(layer_norm(x, w, eps=eps, groups=groups), b)

    def where(self, x: Value, b: Param) -> None:
        _per_feature(x, b)

    def replace(self, x: Value, w: Param, b: Param, eps: float, groups: int) -> Value:
        return layer_norm(x, w, b, eps=eps, groups=groups)


class NarrowRmsNorm(Spelling):
    """The norm widens and rounds by itself; others may go on reading what was widened."""

    def match(self, x: Value, w: Value | None, *, wide: Elem, to: Elem, eps: float, groups: int) -> Value:
        return cast(rms_norm(cast(x, to=wide), w, eps=eps, groups=groups), to=to)

    def where(self, x: Value, wide: Elem, to: Elem) -> None:
        _rounds_once(x, wide, to)

    def replace(self, x: Value, w: Value | None, eps: float, groups: int) -> Value:
        return rms_norm(x, w, eps=eps, groups=groups)


class NarrowLayerNorm(Spelling):
    """The norm widens and rounds by itself."""

    def match(
        self, x: Value, w: Value | None, b: Value | None, *, wide: Elem, to: Elem, eps: float, groups: int
    ) -> Value:
        return cast(layer_norm(cast(x, to=wide), w, b, eps=eps, groups=groups), to=to)

    def where(self, x: Value, wide: Elem, to: Elem) -> None:
        _rounds_once(x, wide, to)

    def replace(self, x: Value, w: Value | None, b: Value | None, eps: float, groups: int) -> Value:
        return layer_norm(x, w, b, eps=eps, groups=groups)


class NarrowL2Norm(Spelling):
    """The norm widens and rounds by itself."""

    def match(self, x: Value, *, wide: Elem, to: Elem, eps: float) -> Value:
        return cast(l2_norm(cast(x, to=wide), eps=eps), to=to)

    def where(self, x: Value, wide: Elem, to: Elem) -> None:
        _rounds_once(x, wide, to)

    def replace(self, x: Value, eps: float) -> Value:
        return l2_norm(x, eps=eps)


RULES = (
    Square(),
    Root(),
    InverseRoot(),
    OneOverRoot(),
    OverRoot(),
    SumOverCount(),
    RmsNorm(),
    L2Norm(),
    LateRmsNorm(),
    LayerNorm(),
    *(rule(norm) for norm in (rms_norm, layer_norm) for rule in (Scaled, Grouped, PerHead)),
    NumberInWeight(),
    ShiftedLayerNorm(),
    NarrowRmsNorm(),
    NarrowLayerNorm(),
    NarrowL2Norm(),
)


def _per_feature(x: Value, w: Param) -> None:
    if w.weight is None or w.type.dims != x.type.dims[-1:]:
        raise NoMatch(f"{w.name} is {w.type}, not one number per feature of {x.type}")


def _rounds_once(x: Value, wide: Elem, to: Elem) -> None:
    if wide.name != "f32" or to != x.type.elem:
        raise NoMatch(f"{x.name} is {x.type}, computed in {wide} and rounded to {to}")
