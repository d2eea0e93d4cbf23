"""Lowering of elementwise ops, and of what reduces a dim.

An elementwise node and those behind it that alone read what is made become one kernel. Such a chain runs
where its first node stands, so all that it reads must be there by then. What is between is computed in f32
(or in whole numbers) and is nowhere in memory; only a cast rounds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from irloom.ir.elem import Elem
from irloom.ir.errors import IRError
from irloom.ir.graph import Arg, Node, Param, Value
from irloom.ir.ops.elementwise import promoted

from .kernels.reduced import DIMS
from .lower import Lowering, lowers

Formula = Callable[[Node, list[str]], str]

GATES = ("silu_mul", "gelu_mul", "act_mul")
"""Ops that multiply a gate, after an activation, with what it lets through: most have a kernel."""
FLOATS = {"bf16": "tl.bfloat16", "f16": "tl.float16", "f32": "tl.float32"}
WHOLE = {"i64": "tl.int64", "i32": "tl.int32", "i16": "tl.int16", "i8": "tl.int8", "u8": "tl.uint8"}
KNOWN = FLOATS | WHOLE | {"bool": "tl.int1"}
"""Elements of which there are chains, as Triton calls them."""


def _call(name: str) -> Formula:
    return lambda n, a: f"{name}({', '.join(a)})"


def _infix(sign: str) -> Formula:
    return lambda n, a: f"({a[0]} {sign} {a[1]})"


def _activation(name: str) -> Formula:
    return lambda n, a: f"activated({a[0]}, {name!r})"


def _pow(n: Node, a: list[str]) -> str:
    """By a known exponent."""
    to = n.args[1]
    if to in (2, 3, 4) and isinstance(n.args[0], Value):
        return f"power({a[0]}, {int(to)})"  # type: ignore[arg-type]
    if isinstance(to, float) and to in (0.5, -0.5):
        return f"tl.{'sqrt' if to > 0 else 'rsqrt'}({a[0]})"
    raise IRError(f"a power of {to}")


def _cast(n: Node, a: list[str]) -> str:
    to, x = n.result.type.plain, n.args[0]
    assert isinstance(x, Value)
    given = x.type.plain
    if to.kind == "bool":
        return f"({a[0]} != 0)"
    if to.kind != "float":
        return f"{a[0]}.to({WHOLE[to.name]})"
    if given.kind != "float" or to.name == "f32":
        return f"{a[0]}.to(tl.float32)"
    return f"rounded({a[0]}, {FLOATS[to.name]}).to(tl.float32)"


def gate_of(n: Node) -> str:
    """The activation of a node that multiplies a gate, by its name in ``act_mul``."""
    if n.attrs.get("tanh"):
        return "gelu_tanh"
    return {"silu_mul": "silu", "gelu_mul": "gelu"}.get(n.op.name) or str(n.attrs["act"])


def _gated(n: Node, a: list[str]) -> str:
    return f"(activated({a[0]}, {gate_of(n)!r}) * {a[1]})"


def _clamped_silu_mul(n: Node, a: list[str]) -> str:
    limit, alpha, shift = (number(n.attrs[k]) for k in ("limit", "alpha", "shift"))
    return f"clamped_silu_mul({a[0]}, {a[1]}, {limit}, {alpha}, {shift})"


def _full(n: Node, a: list[str]) -> str:
    kind = _computed(n)
    return f"tl.full((B,), {number(n.attrs['value'], whole=kind in WHOLE.values())}, {kind})"


FORMULAS: dict[str, Formula] = {
    "add": _infix("+"),
    "sub": _infix("-"),
    "mul": _infix("*"),
    "div": _infix("/"),
    "eq": _infix("=="),
    "ne": _infix("!="),
    "lt": _infix("<"),
    "le": _infix("<="),
    "gt": _infix(">"),
    "ge": _infix(">="),
    "logical_and": _infix("&"),
    "logical_or": _infix("|"),
    "bitwise_xor": _infix("^"),
    "logical_not": lambda n, a: f"({a[0]} == 0)",
    "where": _call("tl.where"),
    "neg": lambda n, a: f"(-{a[0]})",
    "reciprocal": lambda n, a: f"(1.0 / {a[0]})",
    "pow": _pow,
    "maximum": _call("larger"),
    "minimum": _call("smaller"),
    "floor_div": _call("floor_div"),
    "mod": _call("mod"),
    "cast": _cast,
    "gelu": lambda n, a: f"activated({a[0]}, {'gelu_tanh' if n.attrs['tanh'] else 'gelu'!r})",
    "softcap": lambda n, a: f"({number(n.attrs['cap'])} * tanh({a[0]} / {number(n.attrs['cap'])}))",
    "clamped_silu_mul": _clamped_silu_mul,
    "xielu": _call("xielu"),
    "full": _full,
    **{name: _call(f"tl.{name}") for name in ("exp", "log", "sqrt", "rsqrt", "sin", "cos", "erf")},
    **{name: _call(f"tl.{name}") for name in ("abs", "floor")},
    **{name: _call(name) for name in ("expm1", "log1p")},
    **{name: _activation(name) for name in ("silu", "relu", "relu2", "quick_gelu", "mish")},
    **{name: _activation(name) for name in ("sigmoid", "tanh", "softplus")},
    **dict.fromkeys(GATES, _gated),
}  # fmt: skip
"""Each op in Triton, with the functions of ``kernels/curves.py``."""

COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")
ANY_NUMBER = (
    *COMPARED, "add", "sub", "mul", "neg", "abs", "maximum", "minimum", "floor_div", "mod", "pow", "cast",
    "where", "logical_and", "logical_or", "logical_not", "bitwise_xor", "full",
)  # fmt: skip
"""Ops that are not of floats alone."""


@dataclass
class Chain:
    """A chain being collected: what its kernel reads, and its formula so far."""

    leaves: list[Value] = field(default_factory=list[Value])
    text: str = ""

    def grown(self, n: Node, inner: Value | None) -> str:
        """The formula with ``n`` behind ``inner``, what the chain makes; ``IRError`` where it has none."""
        kind = _computed(n)
        chooses = n.op.name == "where"
        terms = [self.term(a, inner, None if chooses and not i else kind) for i, a in enumerate(n.args)]
        if kind != "tl.float32" and n.op.name not in ANY_NUMBER:
            raise IRError(f"{n.op.name} of {kind or n.operands[0]}")
        return FORMULAS[n.op.name](n, terms)

    def term(self, a: Arg, inner: Value | None, kind: str | None) -> str:
        """An operand in what the op computes in, of ``kind``; as it is where that is None."""
        if not isinstance(a, Value):
            return number(a, whole=kind in WHOLE.values())
        if a is inner:
            text = self.text
        else:
            if a not in self.leaves:
                self.leaves.append(a)
            text = f"x{self.leaves.index(a)}"
        name = _element(a)
        same = kind is None or kind == ("tl.float32" if name in FLOATS else KNOWN[name])
        return text if same else f"{text}.to({kind})"


@lowers(*(name for name in FORMULAS if name not in GATES))
def elementwise(f: Lowering, n: Node) -> bool:
    """Lower ``n`` together with the elementwise nodes that follow it."""
    if (narrow := _widened_answer(f, n)) is not None:
        f.same(n.result, narrow)
        return True
    chain = Chain()
    try:
        chain.text = chain.grown(n, None)
    except IRError as e:
        return f.decline(n, e.args[0])
    last, behind = n, list[Node]()
    while (after := _follower(f, n, last)) is not None:
        leaves = [*chain.leaves]
        try:
            chain.text = chain.grown(after, last.result)
        except IRError:
            chain.leaves = leaves
            break
        last = after
        behind.append(after)
    f.folded.update(map(id, behind))
    return f.launch("elementwise", n, *chain.leaves, results=[last.result], attrs={"formula": chain.text})


def _widened_answer(f: Lowering, n: Node) -> Value | None:
    """What a cast widens to be the logits: they stay as they are, and who reads them widens them."""
    if f.func.name != "main" or n.op.name != "cast" or n.result not in f.func.returns[:1]:
        return None
    x, logits = n.args[0], n.result
    if not isinstance(x, Value) or isinstance(x, Param) or not isinstance(x.type.elem, Elem):
        return None
    read = f.readers.get(logits)  # kernels take a value in the element that its type says
    if read or logits.type.plain.name != "f32":
        return None
    return x if x.type.elem.name in ("bf16", "f16") else None


@lowers("sum", "mean", "amax", "amin")
def reduced(f: Lowering, n: Node) -> bool:
    """A kernel of its own, wherever the dim is."""
    x = n.args[0]
    if not isinstance(x, Value) or x.type.rank > DIMS or not _numbers(x) or not _numbers(n.result):
        return f.decline(n, f"{n.operands[0]}")
    return f.launch("reduced", n, x, attrs={"op": n.op.name, "dim": n.attrs["dim"]})


def _numbers(v: Value) -> bool:
    return isinstance(v.type.elem, Elem) and v.type.elem.name in FLOATS | WHOLE


def _follower(f: Lowering, first: Node, last: Node) -> Node | None:
    """The elementwise node that alone reads what ``last`` makes, and nothing made behind ``first``."""
    s = f.only_reader(last.result)
    if s is None or s.op.name not in FORMULAS or id(s) in f.folded:
        return None
    others = [a for a in s.values if a is not last.result]
    apart = any(a in f.prologues or not f.there(a, first) for a in others)
    return None if apart or s.result.type.dims != last.result.type.dims else s


def _computed(n: Node) -> str | None:
    """What Triton computes a node in; None where operands stay what they are."""
    made = n.result.type.plain
    if n.op.name == "cast":
        return None
    if n.op.name in COMPARED:
        elem = promoted(n.operands, n.attrs)
        made = elem if isinstance(elem, Elem) else made
    _element(n.result)
    return "tl.float32" if made.name in FLOATS else KNOWN.get(made.name)


def _element(v: Value) -> str:
    """The element of a value that chains have."""
    elem = v.type.elem
    if not isinstance(elem, Elem) or elem.name not in KNOWN:
        raise IRError(f"{v.name} is {elem}")
    return elem.name


def number(x: object, whole: bool = False) -> str:
    """A number as the text of a formula."""
    if not isinstance(x, (int, float)):
        raise IRError(f"{x!r} is no number")
    if whole or isinstance(x, bool):
        return repr(int(x))
    return repr(float(x)) if abs(float(x)) < float("inf") else f"float({str(float(x))!r})"
