"""How products with experts become ONNX operators: a loop over the experts that a step uses.

Each takes the rows that chose it, multiplies them by its weights, which are read from the stack of all, and
puts the results where they belong. So work is that of the chosen experts, and a weight is read once a step.
"""

from __future__ import annotations

from dataclasses import dataclass

from irloom.ir.dims import product, sym
from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.graph import Node, Param, Value
from irloom.ir.types import Type

from . import quantized
from .elementwise import result_elem
from .graph import Graph
from .lower import Lowering, lowers

I64, BOOL = ELEMS["i64"], ELEMS["bool"]


@lowers("expert_linear", raw=("weight", "bias"))
def expert_linear(low: Lowering, n: Node, x: str, index: str, weight: Value, bias: Value | None) -> str:
    """Rows [t, k, n] of the experts chosen, zeros where an index chooses none."""
    g, elem = low.g, result_elem(n)
    x_type, index_type = (a.type for a in n.args[:2] if isinstance(a, Value))
    out = n.results[0].type.dims
    experts, choices = weight.type.dims[0], index_type.dims[1]
    assert isinstance(experts, int) and isinstance(choices, int)
    flat = g("Reshape", g.cast(index, index_type.plain, I64), g.ints(-1))
    rows = g.reshape(x, (-1, x_type.dims[-1])) if x_type.rank == 3 else x
    shift = None if bias is None else low.weight(bias, elem)
    used = _used(g, flat, experts)
    body = _Turn(flat, used, rows, 1 if x_type.rank == 3 else choices, _Matrices.of(low, weight, elem), shift)
    empty = g("Expand", g.constant(0.0, elem), g.shape((product(out[:2]), out[2])))
    count = g.scalar(g("Shape", used))
    done = g("Loop", count, None, empty, body=body.graph(g, Type(elem, (sym("R"), *out[2:]))))
    return g.reshape(done, out)


def _used(g: Graph, flat: str, experts: int) -> str:
    """The numbers of the experts that are chosen, i64[u]; those that there are not are left out."""
    least, most = g.constant(0, I64), g.constant(experts, I64)
    inside = g("And", g("GreaterOrEqual", flat, least), g("Less", flat, most))
    return g("Unique", g("Compress", flat, inside, axis=0), sorted=1)


@dataclass(frozen=True)
class _Matrices:
    """A stack of matrices [e, n, h] of ``tail`` [n, h]: the parts of a quantized weight, or a value."""

    stack: quantized.Blocks | str
    elem: Elem
    tail: tuple[int, ...]

    @staticmethod
    def of(low: Lowering, w: Value, elem: Elem) -> _Matrices:
        """Those of a weight."""
        tail = tuple(d for d in w.type.dims[1:] if isinstance(d, int))
        if isinstance(w, Param) and isinstance(w.type.elem, Quant):
            return _Matrices(quantized.Blocks.of(w, elem, transposed=False), elem, tail)
        return _Matrices(low.weight(w, elem), elem, tail)

    def read(self, g: Graph, expert: str) -> str:
        """The one of an ``expert``."""
        if isinstance(self.stack, str):
            return g("Gather", self.stack, expert, axis=0)
        return g.reshape(quantized.taken(g, expert, (), self.stack, self.elem), self.tail)


@dataclass(frozen=True)
class _Turn:
    """What the loop does for one of the experts ``used``.

    ``flat`` has the choices of all tokens, ``each`` of them for one of ``rows``.
    """

    flat: str
    used: str
    rows: str
    each: int
    matrices: _Matrices
    shift: str | None

    def graph(self, outer: Graph, made_type: Type) -> Graph:
        """The number of the turn, a condition that holds, the rows made so far: in; the last two: out."""
        g = outer.inner()
        turn, always = g.local("turn", Type(I64)), g.local("go", Type(BOOL))
        made = g.local("rows", made_type)
        expert = g("Gather", self.used, turn, axis=0)
        at = g("NonZero", g("Equal", self.flat, expert))
        places = g.scalar(at)
        source = places if self.each == 1 else g("Div", places, g.constant(self.each, I64))
        shift = None if self.shift is None else g("Gather", self.shift, expert, axis=0)
        own = g("Gather", self.rows, source, axis=0)
        y = g("Gemm", own, self.matrices.read(g, expert), shift, transB=1)
        done = g("ScatterND", made, g.transpose(at, 1, 0), y)
        g.outputs[g("Identity", always)] = Type(BOOL)
        g.outputs[done] = made_type
        return g
