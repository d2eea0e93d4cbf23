"""One entry at a time: arithmetic, comparisons, choices, conversions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irloom.ir.elem import ELEMS, Elem

from ..network import Inferred, Layer, Sizes, Tensor, Value
from .rules import FLOATS, NUMBERS, OPERATORS, PLAIN, allow, broadcast, same_elem

if TYPE_CHECKING:
    import torch

    from ..emitter import Emitter

COMPARISONS = ("equal", "greater", "less")
LOGICAL = ("and", "or", "xor")
ARITHMETIC = ("sum", "prod", "max", "min", "sub", "div", "pow", "floor_div")


@dataclass(frozen=True)
class ElementWise(Layer):
    """``a op b``, broadcast. Division of integers drops the fraction; ``floor_div`` rounds down."""

    source = f"{OPERATORS}/ElementWise.html"

    op: str
    a: Tensor
    b: Tensor

    def infer(self) -> tuple[Inferred, ...]:
        same_elem(self, self.a, self.b)
        if self.op in LOGICAL:
            allow(self, self.op, self.a, ("bool",))
        elif self.op in COMPARISONS:
            allow(self, self.op, self.a, PLAIN if self.op == "equal" else NUMBERS)
        elif self.op in ARITHMETIC:
            allow(self, self.op, self.a, NUMBERS)
        else:
            raise self.refuse(f"no operation {self.op!r}")
        elem = ELEMS["bool"] if self.op in COMPARISONS else self.a.elem
        return ((elem, broadcast(self, self.a, self.b)),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        return (_binary(self.op, value(self.a), value(self.b)),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        op = getattr(to.trt.ElementWiseOperation, self.op.upper())
        return [to.network.add_elementwise(to[self.a], to[self.b], op).get_output(0)]


def _binary(op: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    import torch

    known: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "sum": torch.add,
        "prod": torch.mul,
        "max": torch.maximum,
        "min": torch.minimum,
        "sub": torch.sub,
        "div": lambda x, y: torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc"),
        "pow": torch.pow,
        "floor_div": lambda x, y: torch.div(x, y, rounding_mode="floor"),
        "and": torch.logical_and,
        "or": torch.logical_or,
        "xor": torch.logical_xor,
        "equal": torch.eq,
        "greater": torch.gt,
        "less": torch.lt,
    }
    return known[op](a, b)


UNARY_FLOAT = (
    *("exp", "log", "sqrt", "recip", "sin", "cos", "tan", "sinh", "cosh", "asin", "acos", "atan"),
    *("asinh", "acosh", "atanh", "ceil", "floor", "erf", "round"),
)
UNARY_SIGNED = ("abs", "neg", "sign")
UNARY_TEST = ("isinf", "isnan")


@dataclass(frozen=True)
class Unary(Layer):
    """``op(x)``; ``round`` takes halves to the even neighbour."""

    source = f"{OPERATORS}/Unary.html"

    op: str
    x: Tensor

    def infer(self) -> tuple[Inferred, ...]:
        if self.op == "not":
            allow(self, "not", self.x, ("bool",))
        elif self.op in UNARY_SIGNED:
            allow(self, self.op, self.x, NUMBERS)
        elif self.op in (*UNARY_FLOAT, *UNARY_TEST):
            allow(self, self.op, self.x, FLOATS)
        else:
            raise self.refuse(f"no operation {self.op!r}")
        return ((ELEMS["bool"] if self.op in UNARY_TEST else self.x.elem, self.x.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch

        names = {"recip": "reciprocal", "not": "logical_not"}
        return (getattr(torch, names.get(self.op, self.op))(value(self.x)),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        op = getattr(to.trt.UnaryOperation, self.op.upper())
        return [to.network.add_unary(to[self.x], op).get_output(0)]


@dataclass(frozen=True)
class Activation(Layer):
    """``op(x)`` for the functions between linear layers, with the ``alpha`` and ``beta`` that some take."""

    source = f"{OPERATORS}/Activation.html"

    op: str
    x: Tensor
    alpha: float | None = None
    beta: float | None = None

    def infer(self) -> tuple[Inferred, ...]:
        if self.op not in ACTIVATIONS:
            raise self.refuse(f"no operation {self.op!r}")
        allow(self, self.op, self.x, NUMBERS if self.op == "relu" else FLOATS)
        takes = ACTIVATIONS[self.op]
        for name, given in (("alpha", self.alpha), ("beta", self.beta)):
            if (given is not None) != (name in takes):
                raise self.refuse(f"{self.op} takes {' and '.join(takes) or 'neither alpha nor beta'}")
        return ((self.x.elem, self.x.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        return (_activation(self.op, value(self.x), self.alpha or 0.0, self.beta or 0.0),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        layer = to.network.add_activation(to[self.x], getattr(to.trt.ActivationType, self.op.upper()))
        if self.alpha is not None:
            layer.alpha = self.alpha
        if self.beta is not None:
            layer.beta = self.beta
        return [layer.get_output(0)]


_BOTH = ("alpha", "beta")
ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("relu", "sigmoid", "tanh", "softsign", "gelu_erf", "gelu_tanh"), ()),
    **dict.fromkeys(("leaky_relu", "elu", "thresholded_relu"), ("alpha",)),
    **dict.fromkeys(("selu", "softplus", "clip", "hard_sigmoid", "scaled_tanh"), _BOTH),
}


def _activation(op: str, x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    import torch
    import torch.nn.functional as F

    known: Mapping[str, Callable[[], torch.Tensor]] = {
        "relu": lambda: torch.relu(x),
        "sigmoid": lambda: torch.sigmoid(x),
        "tanh": lambda: torch.tanh(x),
        "softsign": lambda: F.softsign(x),
        "gelu_erf": lambda: F.gelu(x),
        "gelu_tanh": lambda: F.gelu(x, approximate="tanh"),
        "leaky_relu": lambda: F.leaky_relu(x, alpha),
        "elu": lambda: F.elu(x, alpha),
        "thresholded_relu": lambda: torch.where(x > alpha, x, 0),
        "selu": lambda: beta * torch.where(x > 0, x, alpha * torch.exp(x) - alpha),
        "softplus": lambda: alpha * torch.logaddexp(beta * x, torch.zeros_like(x)),
        "clip": lambda: torch.clamp(x, alpha, beta),
        "hard_sigmoid": lambda: torch.clamp(alpha * x + beta, 0, 1),
        "scaled_tanh": lambda: alpha * torch.tanh(beta * x),
    }
    return known[op]()


@dataclass(frozen=True)
class Cast(Layer):
    """The same values in another element. Quantized elements are reached through ``Quantize`` alone."""

    source = f"{OPERATORS}/Cast.html"

    x: Tensor
    elem: Elem

    def infer(self) -> tuple[Inferred, ...]:
        plain = (*PLAIN, "u8", "i8")
        allow(self, "x", self.x, plain)
        if self.elem.name not in plain:
            raise self.refuse(f"to {self.elem}, not one of {', '.join(plain)}")
        return ((self.elem, self.x.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        return (value(self.x).to(self.elem.torch),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        return [to.network.add_cast(to[self.x], to.dtype(self.elem)).get_output(0)]


@dataclass(frozen=True)
class Select(Layer):
    """``a`` where ``condition`` is true, else ``b``; all three broadcast."""

    source = f"{OPERATORS}/Select.html"

    condition: Tensor
    a: Tensor
    b: Tensor

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "condition", self.condition, ("bool",))
        same_elem(self, self.a, self.b)
        allow(self, "a", self.a, PLAIN)
        return ((self.a.elem, broadcast(self, self.condition, self.a, self.b)),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch

        return (torch.where(value(self.condition), value(self.a), value(self.b)),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        layer = to.network.add_select(to[self.condition], to[self.a], to[self.b])
        return [layer.get_output(0)]
