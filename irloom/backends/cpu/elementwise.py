"""Elementwise chains: nodes that nothing else reads become one generated C++ loop, compiled at the build.

A chain runs where its first node stands, so everything it reads must be there by then; what it makes is put
where no value lives that is still read until the chain's last node was due.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from irloom.backends.cpu.lower import Lowering
from irloom.backends.cpu.program import LOWERINGS, lowers
from irloom.ir.errors import IRError
from irloom.ir.graph import Arg, Node, Param, Value
from irloom.ir.ops import OPS

Formula = Callable[[Node, list[str]], str]


def _call(name: str) -> Formula:
    return lambda n, a: f"{name}({', '.join(a)})"


def _infix(sign: str) -> Formula:
    return lambda n, a: f"({a[0]} {sign} {a[1]})"


def _pow(n: Node, a: list[str]) -> str:
    return f"square({a[0]})" if n.args[1] == 2 else f"pow({a[0]}, {a[1]})"


def _curve(act: object, x: str) -> str:
    """The C++ of an activation by its name in the IR."""
    match act:
        case "gelu":
            return f"gelu_erf({x})"
        case "quick_gelu":
            return f"({x} * sigmoid(splat(1.702f) * {x}))"
        case "softplus":
            return f"(max({x}, splat(0.0f)) + log(splat(1.0f) + exp(-abs({x}))))"
        case "mish":
            return f"({x} * tanh({_curve('softplus', x)}))"
        case _:
            return f"{act}({x})"


def _activation(name: str) -> Formula:
    return lambda n, a: _curve(name, a[0])


def _clamped_silu_mul(n: Node, a: list[str]) -> str:
    limit, alpha, shift = (_number(n.attrs[k]) for k in ("limit", "alpha", "shift"))
    g, u = f"min({a[0]}, {limit})", f"max(min({a[1]}, {limit}), -{limit})"
    return f"({g} * sigmoid({alpha} * {g}) * ({u} + {shift}))"


FORMULAS: dict[str, Formula] = {
    "add": _infix("+"),
    "sub": _infix("-"),
    "mul": _infix("*"),
    "div": _infix("/"),
    "neg": lambda n, a: f"(-{a[0]})",
    "reciprocal": lambda n, a: f"(splat(1.0f) / {a[0]})",
    "pow": _pow,
    "maximum": _call("max"),
    "minimum": _call("min"),
    "abs": _call("abs"),
    "gelu": lambda n, a: f"{'gelu_tanh' if n.attrs['tanh'] else 'gelu_erf'}({a[0]})",
    "act_mul": lambda n, a: f"({_curve(n.attrs['act'], a[0])} * {a[1]})",
    "clamped_silu_mul": _clamped_silu_mul,
    "softcap": lambda n, a: f"({_number(n.attrs['cap'])} * tanh({a[0]} / {_number(n.attrs['cap'])}))",
    **{name: _activation(name) for name in ("relu2", "quick_gelu", "mish", "softplus")},
    **{
        name: _call(name)
        for name in ("exp", "log", "sqrt", "rsqrt", "tanh", "erf", "sigmoid", "relu", "silu", "sin", "cos")
    },
}
"""The C++ of each op, over the vector math of ``vec.h``."""


@dataclass
class Chain:
    """A chain being collected: its C++ expression grows from the first node to the last."""

    root: Node
    nodes: list[Node]
    leaves: list[tuple[Arg, str]] = field(default_factory=list[tuple[Arg, str]])

    def leaf(self, a: Arg, kind: str) -> str:
        """The C++ of an input; each is read once."""
        known = next((i for i, (b, _) in enumerate(self.leaves) if b is a), None)
        if known is None:
            known = len(self.leaves)
            self.leaves.append((a, kind))
        return f"x{known}"


def elementwise(f: Lowering, n: Node) -> bool:
    """Lower ``n`` together with the elementwise nodes that follow it."""
    if not f.f32(n.result):
        return False
    chain = Chain(n, [n])
    text = _formula(f, chain, n, None, "")
    if text is None:
        return False
    last = n
    while (after := _follower(f, last)) is not None:
        grown = _formula(f, chain, after, last.result, text)
        if grown is None:
            break
        text, last = grown, after
        chain.nodes.append(after)
    f.place_early(last.result, n)
    name = kernel(f, chain, text)
    given = [
        f.weight(a, "vector") if isinstance(a, Param) and a.weight else f.ref(a) for a, _ in chain.leaves
    ]
    f.call(name, last.result, *given, loc=last.loc)
    f.done.update(id(node) for node in chain.nodes)
    return True


def _follower(f: Lowering, n: Node) -> Node | None:
    """The elementwise node that alone reads ``n``."""
    readers = f.readers.get(n.result, [])
    if len(readers) != 1 or n.result in f.func.returns or n.result in f.places:
        return None
    (s,) = readers
    usable = (
        isinstance(s, Node)
        and s.op.name in FORMULAS
        and s.result.type == n.result.type
        and id(s) not in f.done
    )
    return s if usable and isinstance(s, Node) else None


def _formula(f: Lowering, chain: Chain, n: Node, inner: Value | None, text: str) -> str | None:
    """``n`` as C++; None where an operand is not there yet, or has a shape that the loop does not read."""
    terms: list[str] = []
    shape = n.result.type.dims
    leaves = list(chain.leaves)
    for a in n.args:
        if inner is not None and a is inner:
            terms.append(text)
        elif a is None or isinstance(a, (bool, int, float)):
            terms.append(_number(a))
        else:
            kind = _kind(f, a, shape)
            if kind is None:
                chain.leaves = leaves
                return None
            terms.append(chain.leaf(a, kind))
    return FORMULAS[n.op.name](n, terms)


def _kind(f: Lowering, a: Value, shape: tuple[object, ...]) -> str | None:
    """How the loop reads an operand: entry by entry, one entry a row, or one row for all."""
    if a.type.elem.__str__() != "f32":
        return None
    if isinstance(a, Param) and a.weight is not None:
        return "vector" if a.type.dims == shape[1:] else None
    if a not in f.places:
        return None
    if a.type.dims == shape:
        return "rows"
    return "column" if a.type.dims == (shape[0], *[1] * (len(shape) - 1)) else None


def kernel(f: Lowering, chain: Chain, text: str) -> str:
    """The name of the generated kernel; equal chains share one."""
    kinds = [kind for _, kind in chain.leaves]
    name = "fused_" + hashlib.sha256(f"{text} {kinds}".encode()).hexdigest()[:8]
    f.program.kernels[name] = _source(name, text, kinds)
    return name


def _source(name: str, text: str, kinds: list[str]) -> str:
    read = {
        "rows": "load{part}(x[{i}] + t * ld[{i}] + n{count})",
        "column": "splat(x[{i}][t * ld[{i}]])",
        "vector": "load{part}(x[{i}] + n{count})",
    }

    def inputs(part: str, count: str) -> str:
        return "".join(
            f"      const vf x{i} = {read[kind].format(i=i, part=part, count=count)};\n"
            for i, kind in enumerate(kinds)
        )

    return f"""extern "C" void {name}(
    const float* const* x, const int64_t* ld, float* y, int64_t ldy, int64_t T, int64_t N) {{
  parallel_range(T, 1 + 8192 / (N + 1), [&](int64_t t0, int64_t t1) {{
    for (int64_t t = t0; t < t1; t++) {{
      int64_t n = 0;
      for (; n + W <= N; n += W) {{
{inputs("", "")}      store(y + t * ldy + n, {text});
      }}
      if (n < N) {{
{inputs("_part", ", N - n")}      store_part(y + t * ldy + n, {text}, N - n);
      }}
    }}
  }});
}}
"""


def source(kernels: dict[str, str]) -> str:
    """The C++ file of all generated kernels of a program."""
    head = '#include "extra.h"\nusing namespace irl;\nIRL_INLINE vf square(vf x) { return x * x; }\n'
    return head + "\n".join(kernels[name] for name in sorted(kernels))


def bind(
    library: ctypes.CDLL, name: str, count: int
) -> Callable[[ctypes.Array[ctypes.c_void_p], ctypes.Array[ctypes.c_int64], int, int, int, int], None]:
    """One generated kernel of ``count`` inputs."""
    function = library[name]
    function.argtypes = [
        ctypes.c_void_p * count,
        ctypes.c_int64 * count,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
    ]
    function.restype = None
    return function


def _number(x: object) -> str:
    if not isinstance(x, (int, float)):
        raise IRError(f"cpu: {x!r} is not a number that a generated kernel can hold")
    return f"splat({float(x)!r}f)" if abs(float(x)) < float("inf") else f"splat({'-' * (x < 0)}INFINITY)"


for _name in FORMULAS:
    assert _name in OPS and _name not in LOWERINGS
    lowers(_name)(elementwise)
