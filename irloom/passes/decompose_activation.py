"""``decompose`` for activations, and for products with one."""

from __future__ import annotations

import math

from irloom.ir.graph import Value
from irloom.ir.op import OPS
from irloom.ir.ops import (
    abs_,
    act_mul,
    add,
    clamped_silu_mul,
    erf,
    exp,
    expm1,
    gelu,
    gelu_mul,
    gt,
    log1p,
    maximum,
    minimum,
    mish,
    mul,
    neg,
    quick_gelu,
    relu,
    relu2,
    sigmoid,
    silu,
    silu_mul,
    softplus,
    sub,
    tanh,
    where,
    xielu,
)

from .rewrite import Rewrite
from .wide import rounded_as, wide


def activate(act: str, x: Value) -> Value:
    """The activation called ``act``, as ``act_mul`` names it."""
    return gelu(x, tanh=True) if act == "gelu_tanh" else OPS[act](x)


class Silu(Rewrite):
    """``x * sigmoid(x)``."""

    def match(self, x: Value) -> Value:
        return silu(x)

    def replace(self, x: Value) -> Value:
        h = wide(x)
        return rounded_as(mul(h, sigmoid(h)), x)


class Gelu(Rewrite):
    """``x / 2 * (1 + erf(x / sqrt(2)))``."""

    def match(self, x: Value) -> Value:
        return gelu(x)

    def replace(self, x: Value) -> Value:
        h = wide(x)
        return rounded_as(mul(mul(h, 0.5), add(erf(mul(h, math.sqrt(0.5))), 1.0)), x)


class GeluTanh(Rewrite):
    """``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))``."""

    def match(self, x: Value) -> Value:
        return gelu(x, tanh=True)

    def replace(self, x: Value) -> Value:
        h = wide(x)
        inner = mul(add(mul(mul(mul(h, h), h), 0.044715), h), math.sqrt(2.0 / math.pi))
        return rounded_as(mul(mul(h, 0.5), add(tanh(inner), 1.0)), x)


class QuickGelu(Rewrite):
    """``x * sigmoid(1.702 * x)``."""

    def match(self, x: Value) -> Value:
        return quick_gelu(x)

    def replace(self, x: Value) -> Value:
        return mul(x, sigmoid(mul(x, 1.702)))


class Relu2(Rewrite):
    """``max(x, 0)`` times itself."""

    def match(self, x: Value) -> Value:
        return relu2(x)

    def replace(self, x: Value) -> Value:
        positive = relu(x)
        return mul(positive, positive)


class Softplus(Rewrite):
    """``max(x, 0) + log(1 + e ** -|x|)``, which never overflows."""

    def match(self, x: Value) -> Value:
        return softplus(x)

    def replace(self, x: Value) -> Value:
        h = wide(x)
        return rounded_as(add(relu(h), log1p(exp(neg(abs_(h))))), x)


class Mish(Rewrite):
    """``x * tanh(softplus(x))``."""

    def match(self, x: Value) -> Value:
        return mish(x)

    def replace(self, x: Value) -> Value:
        h = wide(x)
        return rounded_as(mul(h, tanh(softplus(h))), x)


class Xielu(Rewrite):
    """Two branches, chosen by the sign."""

    def match(self, x: Value, above: Value, below: Value, beta: Value, eps: Value) -> Value:
        return xielu(x, above, below, beta, eps)

    def replace(self, x: Value, above: Value, below: Value, beta: Value, eps: Value) -> Value:
        under = mul(sub(expm1(minimum(x, eps)), x), below)
        y = add(where(gt(x, 0), mul(mul(above, x), x), under), mul(beta, x))
        return rounded_as(y, x)


class SiluMul(Rewrite):
    """``silu(gate) * up``."""

    def match(self, gate: Value, up: Value) -> Value:
        return silu_mul(gate, up)

    def replace(self, gate: Value, up: Value) -> Value:
        return mul(silu(gate), up)


class GeluMul(Rewrite):
    """``gelu(gate) * up``."""

    def match(self, gate: Value, up: Value, *, tanh: bool) -> Value:
        return gelu_mul(gate, up, tanh=tanh)

    def replace(self, gate: Value, up: Value, tanh: bool) -> Value:
        return mul(gelu(gate, tanh=tanh), up)


class ActMul(Rewrite):
    """``act(gate) * x``."""

    def match(self, gate: Value, x: Value, *, act: str) -> Value:
        return act_mul(gate, x, act=act)

    def replace(self, gate: Value, x: Value, act: str) -> Value:
        return mul(activate(act, gate), x)


class ClampedSiluMul(Rewrite):
    """``g * sigmoid(alpha * g) * (u + shift)`` of clamped values."""

    def match(self, gate: Value, up: Value, *, limit: float, alpha: float, shift: float) -> Value:
        return clamped_silu_mul(gate, up, limit=limit, alpha=alpha, shift=shift)

    def replace(self, gate: Value, up: Value, limit: float, alpha: float, shift: float) -> Value:
        g = minimum(gate, limit)
        gated = mul(g, sigmoid(g if alpha == 1 else mul(g, alpha)))
        u = minimum(maximum(up, -limit), limit)
        return mul(gated, u if shift == 0 else add(u, shift))


ACTIVATION_RULES = (
    SiluMul(), GeluMul(), ActMul(), ClampedSiluMul(),
    Silu(), Gelu(), GeluTanh(), QuickGelu(), Relu2(), Softplus(), Mish(), Xielu(),
)  # fmt: skip
