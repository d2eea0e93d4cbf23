"""Lowering of elementwise ops: operands are brought to one element and one rank, as TensorRT wants them."""

from __future__ import annotations

from irloom.ir.elem import ELEMS, Elem
from irloom.ir.graph import Arg, Value
from irloom.ir.ops.elementwise import promoted

from .context import Context, Handler, lowers
from .layers.elementwise import Select
from .network import Tensor

F32, I32, BOOL = ELEMS["f32"], ELEMS["i32"], ELEMS["bool"]


def common(c: Context, *names: str) -> Elem:
    """The element that operands are computed in together."""
    given = [c.arg(name) for name in names]
    elem = promoted([a.type if isinstance(a, Value) else a for a in given], {})
    assert isinstance(elem, Elem)
    return elem


def operand(c: Context, a: Arg, elem: Elem) -> Tensor | float:
    """An operand in an element: a tensor, or a plain number."""
    if isinstance(a, Value):
        return c.cast(c.tensor(a), elem)
    assert isinstance(a, (int, float))
    return a


def pair(c: Context, elem: Elem) -> tuple[Tensor | float, Tensor | float]:
    """The first two operands in an element; of two numbers the first becomes a tensor."""
    a, b = (operand(c, x, elem) for x in c.node.args[:2])
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a = c.number(a, elem)
    return a, b


def exact(value: float, elem: Elem) -> bool:
    """Whether an element holds a number as it is."""
    import torch

    return elem.kind != "float" or float(torch.tensor(value, dtype=elem.torch)) == value


def by_number(c: Context, op: str, a: Tensor | float, b: Tensor | float) -> Tensor:
    """``a op b``, in f32 where one is a number that the other's element would round before."""
    elem = next(x.elem for x in (a, b) if isinstance(x, Tensor))
    if all(isinstance(x, Tensor) or exact(x, elem) for x in (a, b)):
        return c.binary(op, a, b)
    wide = (c.cast(x, F32) if isinstance(x, Tensor) else x for x in (a, b))
    return c.cast(c.binary(op, *wide), elem)


def arithmetic(op: str) -> Handler:
    """A handler of arithmetic."""
    return lambda c: by_number(c, op, *pair(c, c.result.plain))


for _name, _op in {"add": "sum", "sub": "sub", "mul": "prod", "div": "div"}.items():
    lowers(_name)(arithmetic(_op))


def rounded(op: str) -> Handler:
    """A handler of what takes numbers in the element of the other operand."""
    return lambda c: c.binary(op, *pair(c, c.result.plain))


lowers("maximum")(rounded("max"))
lowers("minimum")(rounded("min"))
lowers("floor_div")(rounded("floor_div"))


@lowers("pow")
def pow_(c: Context) -> Tensor:
    """Small powers as products: negative bases stay exact."""
    elem = c.result.plain
    x, power = pair(c, elem)
    if not isinstance(x, Tensor) or isinstance(power, Tensor):
        return c.binary("pow", x, power)
    match power:
        case 1:
            return x
        case 2:
            return c.binary("prod", x, x)
        case 3:
            return c.binary("prod", c.binary("prod", x, x), x)
        case 0.5:
            return c.unary("sqrt", x)
        case -1:
            return c.unary("recip", x)
        case -0.5:
            return c.unary("recip", c.unary("sqrt", x))
        case _:
            return c.binary("pow", x, power)


# comparisons and truths


def compared(op: str) -> Handler:
    """A handler of a comparison; layers put no order on truths."""

    def handler(c: Context) -> Tensor:
        elem = common(c, *c.node.op.operands[:2])
        return c.binary(op, *pair(c, I32 if elem == BOOL and op != "equal" else elem))

    return handler


for _name, _op in {"eq": "equal", "lt": "less", "gt": "greater"}.items():
    lowers(_name)(compared(_op))

lowers("logical_and")(lambda c: c.binary("and", *pair(c, BOOL)))
lowers("logical_or")(lambda c: c.binary("or", *pair(c, BOOL)))
lowers("logical_not")(lambda c: c.unary("not", c.cast(c["x"], BOOL)))


@lowers("bitwise_xor")
def bitwise_xor(c: Context) -> Tensor:
    if c.result.elem != BOOL:
        raise c.refuse(f"no layer works on the bits of {c.result.elem}")
    return c.binary("xor", *pair(c, BOOL))


@lowers("where")
def where(c: Context) -> Tensor:
    elem, rank = c.result.plain, c.result.rank
    a, b = (operand(c, c.arg(name), elem) for name in ("a", "b"))
    a, b = (c.lift(x, rank) if isinstance(x, Tensor) else c.number(x, elem, rank) for x in (a, b))
    return c.add(Select(c.lift(c["condition"], rank), a, b))


@lowers("cast")
def cast(c: Context) -> Tensor:
    return c.cast(c["x"], c.result.plain)


# functions of one operand


def x_of(c: Context) -> Tensor:
    """The operand, in the element of the result."""
    return c.cast(c["x"], c.result.plain)


for _name in ("neg", "abs", "exp", "log", "sqrt", "sin", "cos", "erf"):
    lowers(_name)(lambda c: c.unary(c.node.op.name, x_of(c)))
lowers("floor")(lambda c: c.unary("floor", x_of(c)) if c.result.plain.kind == "float" else c["x"])
lowers("reciprocal")(lambda c: c.unary("recip", x_of(c)))
