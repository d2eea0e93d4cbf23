"""Rules of ``raise`` for pieces of blocks that have one spelling."""

from __future__ import annotations

from irloom.ir.dims import Dim
from irloom.ir.graph import Param, Value
from irloom.ir.ops import (
    add,
    expm1,
    gt,
    head_linear,
    matmul,
    maximum,
    minimum,
    mul,
    permute,
    relu,
    reshape,
    sub,
    sum_,
    weighted_sum,
    where,
    xielu,
)
from irloom.ir.weight_expr import Transpose

from .core import NoMatch
from .rewrite import Rewrite, Site


class Relu(Rewrite):
    """What is below zero becomes zero."""

    quiet = True

    def match(self, x: Value) -> Value:
        return maximum(x, 0)

    def replace(self, x: Value) -> Value:
        return relu(x)


class XIelu(Rewrite):
    """The activation of Apertus, whose curvatures are weights."""

    quiet = True

    def match(self, x: Value, above: Value, below: Value, beta: Value, eps: Value) -> Value:
        line = mul(beta, x)
        over = add(mul(mul(above, x), x), line)
        under = add(mul(sub(expm1(minimum(x, eps)), x), below), line)
        return where(gt(x, 0), over, under)

    def replace(self, x: Value, above: Value, below: Value, beta: Value, eps: Value) -> Value:
        return xielu(x, above, below, beta, eps)


class WeightedSum(Rewrite):
    """Rows of a token, weighted and summed."""

    quiet = True

    def match(self, x: Value, w: Value, *, dims: tuple[Dim, ...]) -> Value:
        return sum_(mul(x, reshape(w, dims=dims)), dim=1, keep=False)

    def where(self, x: Value, w: Value, dims: tuple[Dim, ...]) -> None:
        if x.type.rank != 3 or dims != (*x.type.dims[:2], 1) or w.type.dims != x.type.dims[:2]:
            raise NoMatch(f"{w.name} is {w.type}, not one number for each of the rows of {x.type}")

    def replace(self, x: Value, w: Value) -> Value:
        return weighted_sum(x, w)


class HeadsOfRows(Rewrite):
    """A product of every head, heads first, with a stack of weights [heads, in, out]."""

    quiet = True

    def match(self, x: Value, w: Param) -> Value:
        return matmul(x, w)

    def where(self, x: Value, w: Param) -> None:
        _stack(x, w, x.type.dims[1:2])

    def replace(self, x: Value, w: Param, site: Site) -> Value:
        heads, k, n = w.type.dims
        turned = site.new_weight(w.name, w.type.with_dims((heads, n, k)), Transpose(site.weight(w)))
        return permute(head_linear(permute(x, dims=(1, 0, 2)), turned), dims=(1, 0, 2))


class HeadsOfColumns(Rewrite):
    """A product of a stack of weights [heads, out, in] with every head, tokens last."""

    quiet = True

    def match(self, w: Param, x: Value) -> Value:
        return matmul(w, x)

    def where(self, w: Param, x: Value) -> None:
        _stack(x, w, x.type.dims[2:])

    def replace(self, w: Param, x: Value) -> Value:
        return permute(head_linear(permute(x, dims=(2, 0, 1)), w), dims=(1, 2, 0))


RULES = (Relu(), XIelu(), WeightedSum(), HeadsOfRows(), HeadsOfColumns())


def _stack(x: Value, w: Param, tokens: tuple[Dim, ...]) -> None:
    if w.weight is None or x.type.rank != 3 or w.type.rank != 3 or any(isinstance(t, int) for t in tokens):
        raise NoMatch(f"{w.name} is {w.type}, no stack of weights for the heads of {x.type}")
