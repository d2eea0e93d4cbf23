"""Lowering of activations, and of products with an activation."""

from __future__ import annotations

from collections.abc import Callable

from .context import Context, lowers
from .lower_elementwise import by_number, common, x_of
from .network import Tensor

Act = Callable[[Context, Tensor], Tensor]


def _native(op: str, alpha: float | None = None, beta: float | None = None) -> Act:
    return lambda c, x: c.activation(op, x, alpha, beta)


def silu(c: Context, x: Tensor) -> Tensor:
    """``x * sigmoid(x)``."""
    return c.binary("prod", x, c.activation("sigmoid", x))


ACTS: dict[str, Act] = {
    "silu": silu,
    "gelu": _native("gelu_erf"),
    "gelu_tanh": _native("gelu_tanh"),
    "relu": _native("relu"),
    "sigmoid": _native("sigmoid"),
    "tanh": _native("tanh"),
    "softplus": _native("softplus", 1.0, 1.0),
}
"""Activations by the names that ``act_mul`` has for them."""


def act(c: Context, x: Tensor, name: str) -> Tensor:
    """``x`` through an activation."""
    if name not in ACTS:
        raise c.refuse(f"no layer for the activation {name}; the pass decompose has one")
    return ACTS[name](c, x)


@lowers("tanh", "sigmoid", "relu", "softplus", "silu")
def activation(c: Context) -> Tensor:
    x = x_of(c)
    return act(c, x, c.node.op.name) if x.elem.kind == "float" else c.binary("max", x, 0)


def _gelu(c: Context) -> str:
    return "gelu_tanh" if c.attr("tanh") else "gelu"


@lowers("gelu")
def gelu(c: Context) -> Tensor:
    return act(c, c["x"], _gelu(c))


def gated(c: Context, name: str) -> Tensor:
    """The activation of ``gate`` times ``up``, in the element that both have together."""
    elem = common(c, "gate", "up")
    y = c.binary("prod", c.cast(act(c, c["gate"], name), elem), c.cast(c["up"], elem))
    return c.cast(y, c.result.plain)


@lowers("silu_mul")
def silu_mul(c: Context) -> Tensor:
    return gated(c, "silu")


@lowers("gelu_mul")
def gelu_mul(c: Context) -> Tensor:
    return gated(c, _gelu(c))


def softcap(c: Context, x: Tensor, cap: float) -> Tensor:
    """``cap * tanh(x / cap)``."""
    return by_number(c, "prod", c.activation("tanh", by_number(c, "div", x, cap)), cap)


@lowers("softcap")
def softcap_(c: Context) -> Tensor:
    return softcap(c, c["x"], c.attr("cap"))
