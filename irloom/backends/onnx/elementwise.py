"""How elementwise ops become ONNX operators: operands are brought to the element of the result first."""

from __future__ import annotations

from collections.abc import Callable

from irloom.ir.elem import ELEMS, Elem
from irloom.ir.graph import Node, Value
from irloom.ir.ops.elementwise import promoted

from .graph import Graph
from .lower import Lowering, Operand, lowers

BOOL, I32 = ELEMS["bool"], ELEMS["i32"]


def operand(low: Lowering, n: Node, at: int, x: Operand, elem: Elem) -> str:
    """An operand in ``elem``; a number becomes a constant."""
    a = n.args[at]
    if isinstance(a, Value):
        return low.g.cast(x, a.type.plain, elem)
    assert isinstance(a, (int, float))
    number = bool(a) if elem.kind == "bool" else float(a) if elem.kind == "float" else int(a)
    return low.g.constant(number, elem)


def common(n: Node) -> Elem:
    """The element in which the operands of a comparison meet."""
    elem = promoted(n.operands, n.attrs)
    assert isinstance(elem, Elem)
    return elem


def result_elem(n: Node) -> Elem:
    """The element of the (first) result."""
    return n.results[0].type.plain


def computed(elem: Elem) -> Elem:
    """What ONNX Runtime computes an element in: short integers have few operators of their own."""
    return I32 if elem.name in ("i8", "i16", "u8") else elem


def _binary(op: str) -> Callable[..., str]:
    def write(low: Lowering, n: Node, a: Operand, b: Operand) -> str:
        elem = result_elem(n)
        wide = computed(elem)
        return low.g.cast(low.g(op, operand(low, n, 0, a, wide), operand(low, n, 1, b, wide)), wide, elem)

    return write


def _compared(op: str) -> Callable[..., str]:
    def write(low: Lowering, n: Node, a: Operand, b: Operand) -> str:
        elem = computed(common(n))
        elem = I32 if elem == BOOL and op != "Equal" else elem
        return low.g(op, operand(low, n, 0, a, elem), operand(low, n, 1, b, elem))

    return write


def _unary(op: str) -> Callable[..., str]:
    def write(low: Lowering, n: Node, x: Operand) -> str:
        return low.g(op, operand(low, n, 0, x, result_elem(n)))

    return write


for name, onnx in {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow"}.items():
    lowers(name)(_binary(onnx))
for name, onnx in {"maximum": "Max", "minimum": "Min"}.items():
    lowers(name)(_binary(onnx))
for name, onnx in {
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}.items():
    lowers(name)(_compared(onnx))
for name, onnx in {
    "neg": "Neg", "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal",
    "sin": "Sin", "cos": "Cos", "tanh": "Tanh", "erf": "Erf", "sigmoid": "Sigmoid", "softplus": "Softplus",
}.items():  # fmt: skip
    lowers(name)(_unary(onnx))


@lowers("floor", "relu")
def bounded(low: Lowering, n: Node, x: Operand) -> str:
    """Of floats by operators of their own; an integer is whole."""
    if result_elem(n).kind == "float":
        return low.g("Floor" if n.op.name == "floor" else "Relu", x)
    return x if n.op.name == "floor" else low.g("Max", x, low.g.constant(0, result_elem(n)))


@lowers("logical_and", "logical_or")
def logical(low: Lowering, n: Node, a: Operand, b: Operand) -> str:
    """Of whatever is not 0."""
    op = "And" if n.op.name == "logical_and" else "Or"
    return low.g(op, operand(low, n, 0, a, BOOL), operand(low, n, 1, b, BOOL))


@lowers("logical_not")
def logical_not(low: Lowering, n: Node, x: Operand) -> str:
    """Of whatever is not 0."""
    return low.g("Not", operand(low, n, 0, x, BOOL))


@lowers("bitwise_xor")
def bitwise_xor(low: Lowering, n: Node, a: Operand, b: Operand) -> str:
    """Truth values have an operator of their own."""
    op = "Xor" if result_elem(n) == BOOL else "BitwiseXor"
    return _binary(op)(low, n, a, b)


@lowers("floor_div")
def floor_div(low: Lowering, n: Node, a: Operand, b: Operand) -> str:
    """``(a - a % b) / b``, for ONNX divides integers towards 0; of floats the quotient, rounded down."""
    g, elem = low.g, result_elem(n)
    wide = computed(elem)
    x, y = operand(low, n, 0, a, wide), operand(low, n, 1, b, wide)
    if elem.kind == "float":
        return g("Floor", g("Div", x, y))
    return g.cast(g("Div", g("Sub", x, g("Mod", x, y)), y), wide, elem)


@lowers("mod")
def mod(low: Lowering, n: Node, a: Operand, b: Operand) -> str:
    """With the sign of the divisor, which ONNX gives integers alone."""
    g, elem = low.g, result_elem(n)
    x, y = operand(low, n, 0, a, elem), operand(low, n, 1, b, elem)
    if elem.kind != "float":
        return g("Mod", x, y)
    rest, zero = g("Mod", x, y, fmod=1), g.constant(0.0, elem)
    signs = g("Xor", g("Less", rest, zero), g("Less", y, zero))
    astray = g("And", signs, g("Not", g("Equal", rest, zero)))
    return g("Where", astray, g("Add", rest, y), rest)


@lowers("where")
def where(low: Lowering, n: Node, condition: Operand, a: Operand, b: Operand) -> str:
    """As ONNX has it."""
    elem = result_elem(n)
    wide = I32 if elem == BOOL else computed(elem)
    chosen = operand(low, n, 1, a, wide), operand(low, n, 2, b, wide)
    return low.g.cast(low.g("Where", operand(low, n, 0, condition, BOOL), *chosen), wide, elem)


@lowers("cast")
def cast(low: Lowering, n: Node, x: Operand) -> str:
    """As ONNX has it."""
    return operand(low, n, 0, x, result_elem(n))


@lowers("gelu")
def gelu(low: Lowering, n: Node, x: Operand) -> str:
    """``Gelu``, in both forms."""
    how = {"approximate": "tanh"} if n.attrs["tanh"] else {}
    return low.g("Gelu", operand(low, n, 0, x, result_elem(n)), **how)


def squeezed(g: Graph, x: str, cap: float, elem: Elem) -> str:
    """``cap * tanh(x / cap)``."""
    limit = g.constant(float(cap), elem)
    return g("Mul", g("Tanh", g("Div", x, limit)), limit)
