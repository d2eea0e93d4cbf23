"""Rules of ``raise`` for normalizations and activations that a model spells out."""

from __future__ import annotations

import math

from irloom.ir.elem import Elem
from irloom.ir.graph import Param, Value
from irloom.ir.ops import (
    add,
    cast,
    erf,
    gelu,
    layer_norm,
    mean,
    mul,
    pow_,
    rms_norm,
    rsqrt,
    sigmoid,
    silu,
    sub,
    tanh,
)
from irloom.ir.signature import Literal

from .core import NoMatch
from .rewrite import Rewrite


class RmsNorm(Rewrite):
    """Rows over the root of their mean square."""

    def match(self, x: Value, eps: Literal) -> Value:
        return mul(x, rsqrt(add(mean(pow_(x, 2)), eps)))

    def replace(self, x: Value, eps: float) -> Value:
        return rms_norm(x, eps=eps)


class LayerNorm(Rewrite):
    """An RMS norm of what is left after taking off the mean."""

    def match(self, x: Value, *, eps: float) -> Value:
        return rms_norm(sub(x, mean(x)), eps=eps)

    def replace(self, x: Value, eps: float) -> Value:
        return layer_norm(x, eps=eps)


class ScaledRmsNorm(Rewrite):
    """The weight of an RMS norm."""

    quiet = True

    def match(self, x: Value, w: Param, *, eps: float) -> Value:
        return mul(rms_norm(x, eps=eps), w)

    def where(self, x: Value, w: Param) -> None:
        _per_feature(x, w)

    def replace(self, x: Value, w: Param, eps: float) -> Value:
        return rms_norm(x, w, eps=eps)


class ScaledLayerNorm(Rewrite):
    """The weight of a layer norm."""

    quiet = True

    def match(self, x: Value, w: Param, *, eps: float) -> Value:
        return mul(layer_norm(x, eps=eps), w)

    def where(self, x: Value, w: Param) -> None:
        _per_feature(x, w)

    def replace(self, x: Value, w: Param, eps: float) -> Value:
        return layer_norm(x, w, eps=eps)


class ShiftedLayerNorm(Rewrite):
    """The bias of a layer norm."""

    quiet = True

    def match(self, x: Value, w: Param, b: Param, *, eps: float) -> Value:
        return add(layer_norm(x, w, eps=eps), b)

    def where(self, x: Value, b: Param) -> None:
        _per_feature(x, b)

    def replace(self, x: Value, w: Param, b: Param, eps: float) -> Value:
        return layer_norm(x, w, b, eps=eps)


class NarrowRmsNorm(Rewrite):
    """The norm widens and rounds by itself."""

    def match(self, x: Value, w: Value | None, *, wide: Elem, to: Elem, eps: float) -> Value:
        return cast(rms_norm(cast(x, to=wide), w, eps=eps), to=to)

    def where(self, x: Value, wide: Elem, to: Elem) -> None:
        _rounds_once(x, wide, to)

    def replace(self, x: Value, w: Value | None, eps: float) -> Value:
        return rms_norm(x, w, eps=eps)


class NarrowLayerNorm(Rewrite):
    """The norm widens and rounds by itself."""

    def match(self, x: Value, w: Value | None, b: Value | None, *, wide: Elem, to: Elem, eps: float) -> Value:
        return cast(layer_norm(cast(x, to=wide), w, b, eps=eps), to=to)

    def where(self, x: Value, wide: Elem, to: Elem) -> None:
        _rounds_once(x, wide, to)

    def replace(self, x: Value, w: Value | None, b: Value | None, eps: float) -> Value:
        return layer_norm(x, w, b, eps=eps)


class GeluTanh(Rewrite):
    """GELU by the approximation with tanh."""

    quiet = True

    def match(self, x: Value) -> Value:
        inner = mul(add(x, mul(pow_(x, 3), 0.044715)), math.sqrt(2 / math.pi))
        return mul(mul(x, 0.5), add(tanh(inner), 1.0))

    def replace(self, x: Value) -> Value:
        return gelu(x, tanh=True)


class GeluErf(Rewrite):
    """GELU by the error function."""

    quiet = True

    def match(self, x: Value, scale: Literal) -> Value:
        return mul(mul(x, 0.5), add(erf(mul(x, scale)), 1.0))

    def where(self, scale: float) -> None:
        if not math.isclose(scale, math.sqrt(0.5)):
            raise NoMatch(f"erf({scale} * x), not erf(x / sqrt(2))")

    def replace(self, x: Value) -> Value:
        return gelu(x)


class Silu(Rewrite):
    """A value times its sigmoid."""

    quiet = True

    def match(self, x: Value) -> Value:
        return mul(x, sigmoid(x))

    def replace(self, x: Value) -> Value:
        return silu(x)


RULES = (
    RmsNorm(),
    LayerNorm(),
    ScaledRmsNorm(),
    ScaledLayerNorm(),
    ShiftedLayerNorm(),
    NarrowRmsNorm(),
    NarrowLayerNorm(),
    GeluTanh(),
    GeluErf(),
    Silu(),
)


def _per_feature(x: Value, w: Param) -> None:
    if w.weight is None or w.type.dims != x.type.dims[-1:]:
        raise NoMatch(f"{w.name} is {w.type}, not one number per feature of {x.type}")


def _rounds_once(x: Value, wide: Elem, to: Elem) -> None:
    if wide.name != "f32" or to != x.type.elem:
        raise NoMatch(f"{x.name} is {x.type}, computed in {wide} and rounded to {to}")
