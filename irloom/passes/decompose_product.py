"""``decompose`` for products: with an epilogue, with weights of each token, with a matrix of each head."""

from __future__ import annotations

from irloom.ir.elem import Quant
from irloom.ir.graph import Value
from irloom.ir.ops import (
    add,
    head_linear,
    linear,
    linear_act,
    matmul,
    mul,
    permute,
    reshape,
    softcap,
    weighted_sum,
)

from .core import NoMatch
from .decompose_activation import activate
from .rewrite import Rewrite, Site
from .wide import to_elem


class LinearAct(Rewrite):
    """A product, and what comes after it."""

    def match(
        self, x: Value, weight: Value, bias: Value | None, residual: Value | None, *,
        act: str, scale: float, softcap: float,
    ) -> Value:  # fmt: skip
        return linear_act(x, weight, bias, residual, act=act, scale=scale, softcap=softcap)

    def replace(
        self, x: Value, weight: Value, bias: Value | None, residual: Value | None,
        act: str | None, scale: float, softcap: float | None,
    ) -> Value:  # fmt: skip
        y = linear(x, weight, bias)
        y = y if act is None else activate(act, y)
        y = y if scale == 1.0 else mul(y, scale)
        y = y if softcap is None else _capped(y, softcap)
        return y if residual is None else add(residual, y)


def _capped(y: Value, cap: float) -> Value:
    return softcap(y, cap=cap)


class WeightedSum(Rewrite):
    """A row of weights times the rows that they weigh."""

    def match(self, x: Value, weights: Value) -> Value:
        return weighted_sum(x, weights)

    def replace(self, x: Value, weights: Value, site: Site) -> Value:
        elem = site.root.result.type.plain
        tokens, choices, features = x.type.dims
        row = reshape(to_elem(weights, elem), dims=(tokens, 1, choices))
        return reshape(matmul(row, to_elem(x, elem)), dims=(tokens, features))


class HeadLinear(Rewrite):
    """A product for each head. The weight stays as it is stored: activations are turned, not it."""

    def match(self, x: Value, weight: Value) -> Value:
        return head_linear(x, weight)

    def where(self, weight: Value) -> None:
        if isinstance(weight.type.elem, Quant):
            raise NoMatch(f"{weight.name} is quantized, and `matmul` takes no such weight")

    def replace(self, x: Value, weight: Value) -> Value:
        made = matmul(to_elem(weight, x.type.plain), permute(x, dims=(1, 2, 0)))
        return permute(made, dims=(2, 0, 1))


PRODUCT_RULES = (LinearAct(), WeightedSum(), HeadLinear())
