"""Translations of elementwise arithmetic."""

from __future__ import annotations

from typing import Any

import torch

from irloom.frontends.hf.aten.core import as_elem, elementwise, tensor, translates
from irloom.frontends.hf.views import Operand, View
from irloom.ir import ops
from irloom.ir.elem import Elem, elem_of
from irloom.ir.errors import TraceError
from irloom.ir.op import Op

UNARY = {
    "neg": ops.neg, "abs": ops.abs_, "exp": ops.exp, "log": ops.log, "sqrt": ops.sqrt, "rsqrt": ops.rsqrt,
    "expm1": ops.expm1, "log1p": ops.log1p,
    "reciprocal": ops.reciprocal, "sin": ops.sin, "cos": ops.cos, "tanh": ops.tanh, "erf": ops.erf,
    "sigmoid": ops.sigmoid, "relu": ops.relu, "silu": ops.silu, "logical_not": ops.logical_not,
    "floor": ops.floor,
}  # fmt: skip
BINARY = {
    "eq": ops.eq, "ne": ops.ne, "lt": ops.lt, "le": ops.le, "gt": ops.gt, "ge": ops.ge,
    "logical_and": ops.logical_and, "logical_or": ops.logical_or,
    "maximum": ops.maximum, "minimum": ops.minimum, "clamp_min": ops.maximum, "clamp_max": ops.minimum,
    "remainder": ops.mod, "floor_divide": ops.floor_div,
    "bitwise_xor": ops.bitwise_xor, "__xor__": ops.bitwise_xor,
}  # fmt: skip
OVERLOADS = ("Tensor", "Scalar", "default")


OF_TRUTHS = {
    "bitwise_not": ops.logical_not, "bitwise_and": ops.logical_and, "bitwise_or": ops.logical_or,
    "__and__": ops.logical_and, "__or__": ops.logical_or,
}  # fmt: skip
"""Ops on bits, which on booleans are logic."""


def _of_truths(name: str, op: Op) -> None:
    @translates(*(f"aten.{name}.{overload}" for overload in OVERLOADS))
    def _(*xs: Any) -> Operand:
        given = [x if isinstance(x, int) else tensor(x) for x in xs]
        if not all(_is_truth(x) for x in given):
            raise TraceError(f"`{name}` of integers has no translation", hint="of booleans it has one")
        return elementwise(op, *given)


def _is_truth(x: View | int) -> bool:
    return x.value.type.plain.kind == "bool" if isinstance(x, View) else isinstance(x, bool)


def _unary(name: str, op: Op) -> None:
    @translates(f"aten.{name}.default")
    def _(x: Any) -> Operand:
        return unary(op, x)


def _binary(name: str, op: Op) -> None:
    @translates(*(f"aten.{name}.{overload}" for overload in OVERLOADS))
    def _(a: Any, b: Any) -> Operand:
        return binary(op, a, b)


for _name, _op in UNARY.items():
    _unary(_name, _op)
for _name, _op in BINARY.items():
    _binary(_name, _op)
for _name, _op in OF_TRUTHS.items():
    _of_truths(_name, _op)


def unary(op: Op, x: Any) -> Operand:
    """An op on a tensor or a number, which gives a number."""
    if isinstance(x, int | float):
        return op.reference(torch.tensor(float(x))).item()
    return elementwise(op, tensor(x))


def binary(op: Op, a: Any, b: Any) -> Operand:
    """A binary op on tensors or numbers; two numbers give a number."""
    if isinstance(a, int | float) and isinstance(b, int | float):
        a, b = (torch.tensor(x, dtype=torch.float64 if isinstance(x, float) else None) for x in (a, b))
        return op.reference(a, b).item()
    numbers = [x if isinstance(x, int | float) else tensor(x) for x in (a, b)]
    return elementwise(op, *numbers)


@translates("aten.add.Tensor", "aten.add.Scalar")
def add(a: Any, b: Any, alpha: float = 1) -> Operand:
    return binary(ops.add, a, b if alpha == 1 else binary(ops.mul, b, alpha))


@translates("aten.sub.Tensor", "aten.sub.Scalar")
def sub(a: Any, b: Any, alpha: float = 1) -> Operand:
    return binary(ops.sub, a, b if alpha == 1 else binary(ops.mul, b, alpha))


@translates("aten.rsub.Scalar", "aten.rsub.Tensor")
def rsub(a: Any, b: Any, alpha: float = 1) -> Operand:
    return sub(b, a, alpha)


@translates("aten.mul.Tensor", "aten.mul.Scalar", "aten.multiply.Tensor", "aten.multiply.Scalar")
def mul(a: Any, b: Any) -> Operand:
    for x, factor in ((a, b), (b, a)):
        if isinstance(factor, int | float) and factor == 1 and isinstance(x, View) and _floats(x):
            return x
    return binary(ops.mul, a, b)


@translates("aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor")
def div(a: Any, b: Any) -> Operand:
    if isinstance(b, int | float) and b == 1 and isinstance(a, View) and _floats(a):
        return a
    return binary(ops.div, a, b)


@translates("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(a: Any, b: Any, rounding_mode: str | None = None) -> Operand:
    if rounding_mode == "floor":
        return binary(ops.floor_div, a, b)
    if rounding_mode is None:
        return div(a, b)
    raise TraceError(f"division rounded by {rounding_mode!r} has no translation")


@translates("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def power(a: Any, b: Any) -> Operand:
    return binary(ops.pow_, a, b)


@translates("aten.square.default")
def square(x: Any) -> Operand:
    return binary(ops.pow_, x, 2)


@translates("aten.gelu.default")
def gelu(x: Any, approximate: str = "none") -> View:
    return elementwise(ops.gelu, tensor(x), tanh=approximate == "tanh")


@translates("aten.max.other")
def larger(a: Any, b: Any) -> Operand:
    return binary(ops.maximum, a, b)


@translates("aten.min.other")
def smaller(a: Any, b: Any) -> Operand:
    return binary(ops.minimum, a, b)


@translates("aten.softplus.default")
def softplus(x: Any, beta: float = 1, threshold: float = 20) -> Operand:
    if beta != 1 or threshold < 20:
        raise TraceError(f"softplus with beta {beta} and threshold {threshold} has no translation")
    return unary(ops.softplus, x)


@translates("aten.elu.default")
def elu(x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Operand:
    """With the SELU's factors: ``scale * (x if x > 0 else alpha * (exp(input_scale * x) - 1))``."""
    below = mul(unary(ops.expm1, mul(binary(ops.minimum, x, 0.0), input_scale)), alpha)
    return mul(binary(ops.add, unary(ops.relu, x), below), scale)


@translates("aten.log_sigmoid.default")
def log_sigmoid(x: Any) -> Operand:
    return unary(ops.neg, unary(ops.softplus, unary(ops.neg, x)))


@translates("aten.erfinv.default")
def erfinv(x: Any) -> float:
    """Of a constant of the model only."""
    if not isinstance(x, int | float):
        raise TraceError("the inverse error function of a tensor has no translation")
    return torch.tensor(float(x)).erfinv().item()


@translates("aten.where.self", "aten.where.ScalarSelf", "aten.where.ScalarOther", "aten.where.Scalar")
def where(condition: Any, a: Any, b: Any) -> View:
    return elementwise(ops.where, tensor(condition), a, b)


@translates("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(x: Any, mask: Any, value: Any) -> View:
    return elementwise(ops.where, tensor(mask), value, tensor(x))


@translates("aten.clamp.default", "aten.clamp.Tensor")
def clamp(x: Any, min: Any = None, max: Any = None) -> View:
    out = tensor(x)
    if min is not None:
        out = elementwise(ops.maximum, out, min)
    return out if max is None else elementwise(ops.minimum, out, max)


@translates("aten.to.dtype")
def to_dtype(x: Any, dtype: torch.dtype, *_: Any) -> Operand:
    return _cast(x, dtype)


@translates("aten.to.device")
def to_device(x: Any, device: torch.device, dtype: torch.dtype, *_: Any) -> Operand:
    return _cast(x, dtype)


@translates("aten.to.dtype_layout", "aten._to_copy.default")
def to_options(x: Any, dtype: torch.dtype | None = None, **_: Any) -> Operand:
    return x if dtype is None else _cast(x, dtype)


@translates("aten.type_as.default", "aten.to.other")
def type_as(x: Any, like: Any, *_: Any) -> Operand:
    elem = tensor(like).value.type.elem
    if not isinstance(elem, Elem):
        raise TraceError(f"type_as: the element {elem} is not a plain one")
    return _cast(x, elem.torch)


def _cast(x: Any, dtype: torch.dtype) -> Operand:
    """A number is rounded to ``dtype``, as the library rounds a scalar buffer."""
    if isinstance(x, int | float):
        return torch.tensor(x, dtype=dtype).item()
    return as_elem(tensor(x), elem_of(dtype))


def _floats(view: View) -> bool:
    return isinstance(view.value.type.elem, Elem) and view.value.type.elem.kind == "float"
