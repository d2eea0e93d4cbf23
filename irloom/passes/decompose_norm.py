"""``decompose`` for norms: alone, of groups, and beside the sum of a residual stream."""

from __future__ import annotations

from irloom.ir.dims import divide
from irloom.ir.graph import Value
from irloom.ir.ops import (
    add,
    add_layer_norm,
    add_rms_norm,
    l2_norm,
    layer_norm,
    mean,
    mul,
    reshape,
    rms_norm,
    rms_norm_add,
    rsqrt,
    sub,
    sum_,
)

from .core import NoMatch
from .rewrite import Rewrite
from .wide import in_f32, to_elem


def _times(h: Value, weight: Value | None) -> Value:
    return h if weight is None else mul(h, in_f32(weight))


def _plus(h: Value, bias: Value | None) -> Value:
    return h if bias is None else add(h, in_f32(bias))


def _grouped(x: Value, groups: int) -> Value:
    """``x`` in f32 with the groups of a row as a dim of their own."""
    *rows, d = x.type.dims
    return reshape(in_f32(x), dims=(*rows, groups, divide(d, groups)))


def _several(groups: int) -> None:
    if groups == 1:
        raise NoMatch("one group already")


class RmsNorm(Rewrite):
    """``x / sqrt(mean(x ** 2) + eps) * weight``."""

    def match(self, x: Value, weight: Value | None, *, eps: float) -> Value:
        return rms_norm(x, weight, eps=eps)

    def replace(self, x: Value, weight: Value | None, eps: float) -> Value:
        h = in_f32(x)
        scaled = mul(h, rsqrt(add(mean(mul(h, h)), eps)))
        return to_elem(_times(scaled, weight), x.type.plain)


class LayerNorm(Rewrite):
    """``(x - mean) / sqrt(variance + eps) * weight + bias``."""

    def match(self, x: Value, weight: Value | None, bias: Value | None, *, eps: float) -> Value:
        return layer_norm(x, weight, bias, eps=eps)

    def replace(self, x: Value, weight: Value | None, bias: Value | None, eps: float) -> Value:
        h = in_f32(x)
        off = sub(h, mean(h))
        scaled = mul(off, rsqrt(add(mean(mul(off, off)), eps)))
        return to_elem(_plus(_times(scaled, weight), bias), x.type.plain)


class L2Norm(Rewrite):
    """``x / sqrt(sum(x ** 2) + eps)``."""

    def match(self, x: Value, *, eps: float) -> Value:
        return l2_norm(x, eps=eps)

    def replace(self, x: Value, eps: float) -> Value:
        h = in_f32(x)
        return to_elem(mul(h, rsqrt(add(sum_(mul(h, h)), eps))), x.type.plain)


class GroupedRmsNorm(Rewrite):
    """A norm of shorter rows; the weight comes after, for it is that of the whole row."""

    quiet = True

    def match(self, x: Value, weight: Value | None, *, eps: float, groups: int) -> Value:
        return rms_norm(x, weight, eps=eps, groups=groups)

    def where(self, groups: int) -> None:
        _several(groups)

    def replace(self, x: Value, weight: Value | None, eps: float, groups: int) -> Value:
        h = reshape(rms_norm(_grouped(x, groups), eps=eps), dims=x.type.dims)
        return to_elem(_times(h, weight), x.type.plain)


class GroupedLayerNorm(Rewrite):
    """As ``GroupedRmsNorm``."""

    quiet = True

    def match(self, x: Value, weight: Value | None, bias: Value | None, *, eps: float, groups: int) -> Value:
        return layer_norm(x, weight, bias, eps=eps, groups=groups)

    def where(self, groups: int) -> None:
        _several(groups)

    def replace(self, x: Value, weight: Value | None, bias: Value | None, eps: float, groups: int) -> Value:
        h = reshape(layer_norm(_grouped(x, groups), eps=eps), dims=x.type.dims)
        return to_elem(_plus(_times(h, weight), bias), x.type.plain)


class AddRmsNorm(Rewrite):
    """The sum, then its norm."""

    def match(
        self, x: Value, y: Value, weight: Value | None, inner: Value | None, *, eps: float, inner_eps: float
    ) -> tuple[Value, Value]:
        return add_rms_norm(x, y, weight, inner, eps=eps, inner_eps=inner_eps)

    def replace(
        self, x: Value, y: Value, weight: Value | None, inner: Value | None, eps: float,
        inner_eps: float | None,
    ) -> tuple[Value, Value]:  # fmt: skip
        s = add(x, y if inner_eps is None else rms_norm(y, inner, eps=inner_eps))
        return s, rms_norm(s, weight, eps=eps)


class RmsNormAdd(Rewrite):
    """A norm, then the sum."""

    def match(self, x: Value, y: Value, weight: Value | None, *, eps: float) -> Value:
        return rms_norm_add(x, y, weight, eps=eps)

    def replace(self, x: Value, y: Value, weight: Value | None, eps: float) -> Value:
        return add(x, rms_norm(y, weight, eps=eps))


class AddLayerNorm(Rewrite):
    """As ``AddRmsNorm``."""

    def match(
        self, x: Value, y: Value, weight: Value | None, bias: Value | None, *, eps: float
    ) -> tuple[Value, Value]:
        return add_layer_norm(x, y, weight, bias, eps=eps)

    def replace(
        self, x: Value, y: Value, weight: Value | None, bias: Value | None, eps: float
    ) -> tuple[Value, Value]:
        s = add(x, y)
        return s, layer_norm(s, weight, bias, eps=eps)


GROUP_RULES = (GroupedRmsNorm(), GroupedLayerNorm())
"""They leave the op itself, in a form that a target has."""

NORM_RULES = (AddRmsNorm(), RmsNormAdd(), AddLayerNorm(), RmsNorm(), LayerNorm(), L2Norm())
