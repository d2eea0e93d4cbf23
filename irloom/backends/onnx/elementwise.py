"""How elementwise ops become ONNX operators: operands are brought to the element of the result first."""

from __future__ import annotations

from collections.abc import Callable

from irloom.ir.elem import ELEMS, Elem
from irloom.ir.graph import Node, Value
from irloom.ir.ops.elementwise import promoted

from .graph import Graph
from .lower import Lowering, Operand, lowers

BOOL, F32 = ELEMS["bool"], ELEMS["f32"]


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


def _binary(op: str) -> Callable[..., str]:
    def write(low: Lowering, n: Node, a: Operand, b: Operand) -> str:
        elem = result_elem(n)
        return low.g(op, operand(low, n, 0, a, elem), operand(low, n, 1, b, elem))

    return write


def _compared(op: str) -> Callable[..., str]:
    def write(low: Lowering, n: Node, a: Operand, b: Operand) -> str:
        elem = common(n)
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
    "floor": "Floor", "relu": "Relu", "mish": "Mish",
}.items():  # fmt: skip
    lowers(name)(_unary(onnx))


@lowers("ne")
def ne(low: Lowering, n: Node, a: Operand, b: Operand) -> str:
    """There is no operator for it."""
    return low.g("Not", _compared("Equal")(low, n, a, b))


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
    x, y = operand(low, n, 0, a, elem), operand(low, n, 1, b, elem)
    if elem.kind == "float":
        return g("Floor", g("Div", x, y))
    return g("Div", g("Sub", x, g("Mod", x, y)), y)


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
    chosen = operand(low, n, 1, a, elem), operand(low, n, 2, b, elem)
    return low.g("Where", operand(low, n, 0, condition, BOOL), *chosen)


@lowers("rsqrt")
def rsqrt(low: Lowering, n: Node, x: Operand) -> str:
    """ONNX has the parts."""
    return low.g("Reciprocal", low.g("Sqrt", operand(low, n, 0, x, result_elem(n))))


@lowers("expm1")
def expm1(low: Lowering, n: Node, x: Operand) -> str:
    """Near 0 by ``2 t / (1 - t)``, ``t = tanh(x / 2)``, which keeps the digits that ``exp(x) - 1`` loses."""
    g, elem = low.g, result_elem(n)
    x = operand(low, n, 0, x, elem)
    one, two, half = (g.constant(v, elem) for v in (1.0, 2.0, 0.5))
    t = g("Tanh", g("Mul", x, half))
    near = g("Div", g("Mul", two, t), g("Sub", one, t))
    return g("Where", g("Less", g("Abs", x), half), near, g("Sub", g("Exp", x), one))


@lowers("log1p")
def log1p(low: Lowering, n: Node, x: Operand) -> str:
    """``log(u) * x / (u - 1)``, ``u = 1 + x``, whose errors cancel (Goldberg, 1991); ``x`` where u is 1."""
    g, elem = low.g, result_elem(n)
    x = operand(low, n, 0, x, elem)
    one = g.constant(1.0, elem)
    u = g("Add", x, one)
    exact = g("Div", g("Mul", g("Log", u), x), g("Sub", u, one))
    return g("Where", g("Equal", u, one), x, exact)


@lowers("cast")
def cast(low: Lowering, n: Node, x: Operand) -> str:
    """As ONNX has it."""
    return operand(low, n, 0, x, result_elem(n))


@lowers("silu", "gelu", "relu2", "quick_gelu")
def activation(low: Lowering, n: Node, x: Operand) -> str:
    """One operand through an activation."""
    act = "gelu_tanh" if n.attrs.get("tanh") else n.op.name
    return activate(low, act, operand(low, n, 0, x, result_elem(n)), result_elem(n))


@lowers("silu_mul", "gelu_mul", "act_mul")
def gated(low: Lowering, n: Node, gate: Operand, x: Operand) -> str:
    """An activation of the gate, times the other."""
    named = {"silu_mul": "silu", "gelu_mul": "gelu_tanh" if n.attrs.get("tanh") else "gelu"}
    act, elem = named.get(n.op.name) or str(n.attrs["act"]), result_elem(n)
    open_ = activate(low, act, operand(low, n, 0, gate, elem), elem)
    return low.g("Mul", open_, operand(low, n, 1, x, elem))


def activate(low: Lowering, act: str, x: str, elem: Elem) -> str:
    """``x`` through one of ``ir.ops.activation.ACTIVATIONS``."""
    g = low.g
    match act:
        case "silu":
            low.note("silu as Sigmoid and Mul: ONNX Runtime spells Swish out as Cast, Mul, Sigmoid, Mul")
            return g("Mul", x, g("Sigmoid", x))
        case "gelu":
            return g("Gelu", x)
        case "gelu_tanh":
            return g("Gelu", x, approximate="tanh")
        case "quick_gelu":
            return g("Mul", x, g("Sigmoid", g("Mul", x, g.constant(1.702, elem))))
        case "relu2":
            positive = g("Relu", x)
            return g("Mul", positive, positive)
        case _:
            return g(_NAMED[act], x)


_NAMED = {"mish": "Mish", "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softplus": "Softplus"}


@lowers("softcap")
def softcap(low: Lowering, n: Node, x: Operand) -> str:
    """``cap * tanh(x / cap)``."""
    cap = n.attrs["cap"]
    assert isinstance(cap, (int, float))
    return squeezed(low.g, operand(low, n, 0, x, result_elem(n)), cap, result_elem(n))


def squeezed(g: Graph, x: str, cap: float, elem: Elem) -> str:
    """``cap * tanh(x / cap)``."""
    limit = g.constant(float(cap), elem)
    return g("Mul", g("Tanh", g("Div", x, limit)), limit)


@lowers("clamped_silu_mul")
def clamped_silu_mul(low: Lowering, n: Node, gate: Operand, up: Operand) -> str:
    """As its body."""
    g, elem = low.g, result_elem(n)
    limit, alpha, shift = (float(str(n.attrs[k])) for k in ("limit", "alpha", "shift"))
    most, least = g.constant(limit, elem), g.constant(-limit, elem)
    gate = g("Min", operand(low, n, 0, gate, elem), most)
    up = g("Clip", operand(low, n, 1, up, elem), least, most)
    opened = g("Mul", gate, g("Sigmoid", g("Mul", gate, g.constant(alpha, elem)) if alpha != 1 else gate))
    return g("Mul", opened, g("Add", up, g.constant(shift, elem)) if shift else up)


@lowers("xielu")
def xielu(
    low: Lowering, n: Node, x: Operand, above: Operand, below: Operand, beta: Operand, eps: Operand
) -> str:
    """As its body, in f32, with ``expm1`` of what is at most ``eps``."""
    g = low.g
    x, above, below, beta, eps = (
        operand(low, n, i, a, F32) for i, a in enumerate((x, above, below, beta, eps))
    )
    small = g("Min", x, eps)
    one, half = g.constant(1.0, F32), g.constant(0.5, F32)
    t = g("Tanh", g("Mul", small, half))
    near = g("Div", g("Mul", g.constant(2.0, F32), t), g("Sub", one, t))
    exact = g("Where", g("Less", g("Abs", small), half), near, g("Sub", g("Exp", small), one))
    under = g("Mul", g("Sub", exact, x), below)
    over = g("Mul", g("Mul", above, x), x)
    out = g("Where", g("Greater", x, g.constant(0.0, F32)), over, under)
    return g.cast(g("Add", out, g("Mul", beta, x)), F32, result_elem(n))
