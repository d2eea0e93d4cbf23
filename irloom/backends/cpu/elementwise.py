"""Elementwise chains: nodes that nothing else reads become one generated C++ loop, compiled at the build.

A chain runs where its first node stands, so everything it reads must be there by then; what it makes is put
where no value lives that is still read until the chain's last node was due.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from irloom.backends.cpu.lower import F32, Lowering
from irloom.backends.cpu.place import by_rows
from irloom.backends.cpu.program import LOWERINGS, lowers
from irloom.ir.dims import Dim, product
from irloom.ir.errors import IRError
from irloom.ir.graph import Node, Value
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
    return f"{'gelu_erf' if act == 'gelu' else act}({x})"


def _activation(name: str) -> Formula:
    return lambda n, a: _curve(name, a[0])


def _clamped_silu_mul(n: Node, a: list[str]) -> str:
    limit, alpha, shift = (_number(n.attrs[k]) for k in ("limit", "alpha", "shift"))
    g, u = f"min({a[0]}, {limit})", f"max(min({a[1]}, {limit}), -{limit})"
    return f"({g} * sigmoid({alpha} * {g}) * ({u} + {shift}))"


def _xielu(n: Node, a: list[str]) -> str:
    x, above, below, beta, eps = a
    under = f"({below} * (expm1(min({x}, {eps})) - {x}))"
    return f"(pick({x}, {above} * {x} * {x}, {under}) + {beta} * {x})"


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
    "xielu": _xielu,
    "full": lambda n, a: _number(n.attrs["value"]),
    "softcap": lambda n, a: f"({_number(n.attrs['cap'])} * tanh({a[0]} / {_number(n.attrs['cap'])}))",
    **{name: _activation(name) for name in ("relu2", "quick_gelu", "mish")},
    **{name: _call(name) for name in ("exp", "expm1", "log", "log1p", "sqrt", "rsqrt")},
    **{
        name: _call(name)
        for name in ("tanh", "erf", "sigmoid", "softplus", "relu", "silu", "sin", "cos", "floor")
    },
}
"""The C++ of each op, over the vector math of ``vec.h``."""


@dataclass
class Chain:
    """A chain being collected: its C++ expression grows from the first node to the last.

    ``cuts`` are the places at which a row may be cut into parts, so that each input either moves on from part
    to part or does not, and within a part has all entries or one for all.
    """

    root: Node
    nodes: list[Node]
    cuts: set[int]
    leaves: list[Value] = field(default_factory=list[Value])

    @staticmethod
    def of(n: Node) -> Chain:
        """A chain of one node."""
        return Chain(n, [n], set(range(n.result.type.rank)) or {0})

    @property
    def dims(self) -> tuple[Dim, ...]:
        """What each node of the chain makes."""
        return self.root.result.type.dims

    def leaf(self, a: Value) -> str:
        """The C++ of an input; each is read once."""
        if a not in self.leaves:
            self.leaves.append(a)
        return f"x{self.leaves.index(a)}"

    def parts(self) -> int:
        """How many parts the loop cuts a row into."""
        n = product(self.dims[1 : 1 + min(self.cuts)])
        assert isinstance(n, int)
        return n

    def kind(self, a: Value) -> str:
        """How the loop reads an input: does it move on with rows, with parts, within a part."""
        dims, at = _aligned(a, self.dims), 1 + min(self.cuts)
        return "".join(
            sign if any(n != 1 for n in some) else "-"
            for sign, some in (("t", dims[:1]), ("p", dims[1:at]), ("n", dims[at:]))
        )


def elementwise(f: Lowering, n: Node) -> bool:
    """Lower ``n`` together with the elementwise nodes that follow it."""
    if not f.f32(n.result):
        return False
    chain = Chain.of(n)
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
    given = [f.weight(a, "vector") if f.is_weight(a) else f.ref(a) for a in chain.leaves]
    more = {"parts": chain.parts()} if chain.parts() > 1 else {}
    f.call(name, last.result, *given, **more, loc=last.loc)
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
    cuts = set(chain.cuts)
    read = [a for a in n.values if a is not inner]
    for a in read:
        cuts &= _cuts(f, a, chain.dims)
    if not cuts:
        return None
    chain.cuts = cuts
    terms = [text if a is inner else chain.leaf(a) if isinstance(a, Value) else _number(a) for a in n.args]
    return FORMULAS[n.op.name](n, terms)


def _cuts(f: Lowering, a: Value, shape: tuple[Dim, ...]) -> set[int]:
    """Where rows of ``shape`` may be cut for an operand to have all dims, or none, on either side.

    Nowhere when the operand is not there yet, or does not lie as the loop reads.
    """
    if a.type.elem != F32 or not (f.is_weight(a) or a in f.places):
        return set()
    dims = _aligned(a, shape)
    if not f.is_weight(a) and not by_rows(a.type.dims) and not f.places[a].whole:
        return set()
    rows = list(zip(dims[1:], shape[1:], strict=True))
    return {at for at in range(len(rows) + 1) if all(_all_or_none(part) for part in (rows[:at], rows[at:]))}


def _all_or_none(part: list[tuple[Dim, Dim]]) -> bool:
    return all(n == size for n, size in part) or all(n == 1 for n, _ in part)


def _aligned(a: Value, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The dims of an operand with those that broadcasting adds in front."""
    return (1,) * (len(shape) - a.type.rank) + a.type.dims


def kernel(f: Lowering, chain: Chain, text: str) -> str:
    """The name of the generated kernel; equal chains share one."""
    kinds = [chain.kind(a) for a in chain.leaves]
    name = "fused_" + hashlib.sha256(f"{text} {kinds}".encode()).hexdigest()[:8]
    f.program.kernels[name] = _source(name, text, kinds)
    return name


def _source(name: str, text: str, kinds: list[str]) -> str:
    def start(i: int, kind: str) -> str:
        moves = {"t": f"t * ld[{i}]", "p": "p * N" if "n" in kind else "p"}
        return " + ".join([f"x[{i}]", *(moves[sign] for sign in kind if sign in moves)])

    def inputs(part: str, count: str) -> str:
        return "".join(
            f"        const vf x{i} = "
            + (f"load{part}(r{i} + n{count})" if "n" in kind else f"splat(*r{i})")
            + ";\n"
            for i, kind in enumerate(kinds)
        )

    starts = "".join(f"      const float* r{i} = {start(i, kind)};\n" for i, kind in enumerate(kinds))
    return f"""extern "C" void {name}(
    const float* const* x, const int64_t* ld, float* y, int64_t ldy, int64_t T, int64_t P, int64_t N) {{
  parallel_range(T, 1 + 8192 / (P * N + 1), [&](int64_t t0, int64_t t1) {{
    for (int64_t i = t0 * P; i < t1 * P; i++) {{
      const int64_t t = i / P, p = i % P;
{starts}      float* to = y + t * ldy + p * N;
      int64_t n = 0;
      for (; n + W <= N; n += W) {{
{inputs("", "")}        store(to + n, {text});
      }}
      if (n < N) {{
{inputs("_part", ", N - n")}        store_part(to + n, {text}, N - n);
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
) -> Callable[[ctypes.Array[ctypes.c_void_p], ctypes.Array[ctypes.c_int64], int, int, int, int, int], None]:
    """One generated kernel of ``count`` inputs."""
    function = library[name]
    function.argtypes = [
        ctypes.c_void_p * count,
        ctypes.c_int64 * count,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 4,
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
