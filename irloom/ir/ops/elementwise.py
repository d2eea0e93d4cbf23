"""Elementwise ops: operands broadcast against each other, and a plain number may stand for any of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..elem import ELEMS, AnyElem, Elem, elem_of
from ..errors import IRError
from ..op import Attrs, op
from ..signature import Operand
from ..types import Type

Number = float | Tensor


def promoted(operands: Sequence[Operand], attrs: Attrs) -> AnyElem:
    """The element that torch makes of up to two operands.

    Numbers, and tensors without dims next to tensors with some, only lift the others to a higher kind.
    """
    given = [x for x in operands if x is not None]
    elems = [x.elem for x in given if isinstance(x, Type)]
    if elems and (not isinstance(elems[0], Elem) or (len(elems) == len(given) and len(set(elems)) == 1)):
        return elems[0]
    if not elems and len(given) < 2:
        raise IRError("no operand is a tensor", hint="its element has nothing to follow from")
    try:
        a, b = [_stand_in(x) if isinstance(x, Type) else x for x in given]
        return elem_of(torch.result_type(a, b))
    except RuntimeError:
        raise IRError(f"{given[0]} and {given[1]} have no common element", hint="cast one of them") from None


def _stand_in(t: Type) -> Tensor:
    return torch.empty((1,) * bool(t.dims), dtype=t.plain.torch, device="meta")


def _truth(operands: Sequence[Operand], attrs: Attrs) -> AnyElem:
    return ELEMS["bool"]


def _floating(operands: Sequence[Operand], attrs: Attrs) -> AnyElem:
    elem = promoted(operands, attrs)
    return elem if not isinstance(elem, Elem) or elem.kind == "float" else ELEMS["f32"]


@op("+~b, +~b -> +~b", commutative=True)
def add(a: Number, b: Number) -> Number:
    """``a + b``. Two partial sums over one axis add up to a partial sum."""
    return a + b


@op("+~b, +~b -> +~b")
def sub(a: Number, b: Number) -> Number:
    """``a - b``."""
    return a - b


@op("~b, ~b -> ~b", commutative=True)
def mul(a: Number, b: Number) -> Number:
    """``a * b``."""
    return a * b


@op("~b, ~b -> ~b")
def div(a: Number, b: Number) -> Number:
    """``a / b``."""
    return a / b


@op("~b, ~b -> ~b")
def pow_(a: Number, b: Number) -> Number:
    """``a ** b``."""
    return a**b


@op("~b, ~b -> ~b", commutative=True)
def maximum(a: Number, b: Number) -> Number:
    """The larger of the two, entry by entry."""
    return torch.maximum(torch.as_tensor(a), torch.as_tensor(b))


@op("~b, ~b -> ~b", commutative=True)
def minimum(a: Number, b: Number) -> Number:
    """The smaller of the two, entry by entry."""
    return torch.minimum(torch.as_tensor(a), torch.as_tensor(b))


@op("~b, ~b -> ~b")
def floor_div(a: Number, b: Number) -> Number:
    """``a // b``, rounded down."""
    return a // b


@op("~b, ~b -> ~b")
def mod(a: Number, b: Number) -> Number:
    """``a % b`` with the sign of ``b``."""
    return a % b


@op("~b, ~b -> ~b", commutative=True)
def eq(a: Number, b: Number) -> Number:
    """``a == b``."""
    return a == b


@op("~b, ~b -> ~b", commutative=True)
def ne(a: Number, b: Number) -> Number:
    """``a != b``."""
    return a != b


@op("~b, ~b -> ~b")
def lt(a: Number, b: Number) -> Number:
    """``a < b``."""
    return a < b


@op("~b, ~b -> ~b")
def le(a: Number, b: Number) -> Number:
    """``a <= b``."""
    return a <= b


@op("~b, ~b -> ~b")
def gt(a: Number, b: Number) -> Number:
    """``a > b``."""
    return a > b


@op("~b, ~b -> ~b")
def ge(a: Number, b: Number) -> Number:
    """``a >= b``."""
    return a >= b


@op("~b, ~b -> ~b", commutative=True)
def logical_and(a: Tensor, b: Tensor) -> Tensor:
    """``a and b`` on booleans."""
    return torch.logical_and(a, b)


@op("~b, ~b -> ~b", commutative=True)
def logical_or(a: Tensor, b: Tensor) -> Tensor:
    """``a or b`` on booleans."""
    return torch.logical_or(a, b)


@op("~b, ~b -> ~b", commutative=True)
def bitwise_xor(a: Tensor, b: Tensor) -> Tensor:
    """The bits of ``a`` or of ``b``, not of both; on integers."""
    return torch.bitwise_xor(a, b)


@bitwise_xor.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    for x in operands:
        if isinstance(x, Type) and x.plain.kind == "float":
            raise IRError(f"bitwise_xor: an operand is {x}", hint="it is of integers")


@op("~b, ~b, ~b -> ~b")
def where(condition: Tensor, a: Number, b: Number) -> Tensor:
    """``a`` where ``condition`` holds, else ``b``."""
    return torch.where(condition, a, b)


@where.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    condition = operands[0]
    if isinstance(condition, Type) and condition.plain.kind != "bool":
        raise IRError(f"where: operand `condition` is {condition}, not of truth values", hint="compare it")


@op("~b -> ~b")
def logical_not(x: Tensor) -> Tensor:
    """``not x`` on booleans."""
    return torch.logical_not(x)


@op("+~b -> +~b")
def neg(x: Tensor) -> Tensor:
    """``-x``."""
    return -x


@op("~b -> ~b")
def abs_(x: Tensor) -> Tensor:
    """The absolute value."""
    return x.abs()


@op("~b -> ~b")
def exp(x: Tensor) -> Tensor:
    """``e ** x``."""
    return x.exp()


@op("~b -> ~b")
def expm1(x: Tensor) -> Tensor:
    """``e ** x - 1``, which keeps its digits where ``x`` is near 0."""
    return x.expm1()


@op("~b -> ~b")
def log(x: Tensor) -> Tensor:
    """The natural logarithm."""
    return x.log()


@op("~b -> ~b")
def log1p(x: Tensor) -> Tensor:
    """``log(1 + x)``, which keeps its digits where ``x`` is near 0."""
    return x.log1p()


@op("~b -> ~b")
def sqrt(x: Tensor) -> Tensor:
    """The square root."""
    return x.sqrt()


@op("~b -> ~b")
def rsqrt(x: Tensor) -> Tensor:
    """``1 / sqrt(x)``."""
    return x.rsqrt()


@op("~b -> ~b")
def reciprocal(x: Tensor) -> Tensor:
    """``1 / x``."""
    return x.reciprocal()


@op("~b -> ~b")
def sin(x: Tensor) -> Tensor:
    """The sine of radians."""
    return x.sin()


@op("~b -> ~b")
def cos(x: Tensor) -> Tensor:
    """The cosine of radians."""
    return x.cos()


@op("~b -> ~b")
def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return x.tanh()


@op("~b -> ~b")
def erf(x: Tensor) -> Tensor:
    """The error function."""
    return x.erf()


@op("~b -> ~b")
def sigmoid(x: Tensor) -> Tensor:
    """``1 / (1 + e ** -x)``."""
    return x.sigmoid()


@op("~b -> ~b")
def softplus(x: Tensor) -> Tensor:
    """``log(1 + e ** x)``: a smooth ``max(x, 0)``."""
    return F.softplus(x)


@op("~b -> ~b")
def floor(x: Tensor) -> Tensor:
    """The next whole number that is not larger."""
    return x.floor()


@op("~b -> ~b")
def relu(x: Tensor) -> Tensor:
    """``max(x, 0)``."""
    return x.relu()


@op("~b -> ~b")
def silu(x: Tensor) -> Tensor:
    """``x * sigmoid(x)``."""
    return F.silu(x)


@op("~b -> ~b")
def gelu(x: Tensor, *, tanh: bool = False) -> Tensor:
    """``x * Phi(x)``; with ``tanh`` the approximation by ``tanh`` (Hendrycks and Gimpel, 2016)."""
    return F.gelu(x, approximate="tanh" if tanh else "none")


@op("~b -> ~b")
def softcap(x: Tensor, *, cap: float) -> Tensor:
    """``cap * tanh(x / cap)``: squeezes ``x`` into (-cap, cap)."""
    return cap * torch.tanh(x / cap)


@op("~b -> ~b")
def cast(x: Tensor, *, to: Elem) -> Tensor:
    """``x`` in another element."""
    return x.to(to.torch)


@cast.dtype
def _(operands: Sequence[Operand], attrs: Attrs) -> AnyElem:
    to = attrs["to"]
    assert isinstance(to, Elem)
    return to


for _op in (add, sub, mul, maximum, minimum, floor_div, mod, pow_, bitwise_xor):
    _op.dtype(promoted)
for _op in (eq, ne, lt, le, gt, ge, logical_and, logical_or, logical_not):
    _op.dtype(_truth)
for _op in (div, exp, expm1, log, log1p, sqrt, rsqrt, reciprocal, sin, cos, tanh, erf, sigmoid, softplus):
    _op.dtype(_floating)
where.dtype(lambda operands, attrs: promoted(operands[1:], attrs))
