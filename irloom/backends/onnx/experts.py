"""How products with experts become ONNX operators: a loop over the experts that a step uses.

Each takes the rows that chose it, multiplies them by its weights, which are read from the stack of all, and
puts the results where they belong. So work is that of the chosen experts, and a weight is read once a step.
"""

from __future__ import annotations

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
    each = 1 if x_type.rank == 3 else choices
    shift = None if bias is None else low.weight(bias, elem)
    body = _Body(g, flat, rows, each, _Matrix.of(low, weight, elem), shift, Type(elem, out[2:]))
    empty = g("Expand", g.constant(0.0, elem), g.shape((product(out[:2]), out[2])))
    count = g.scalar(g("Shape", body.used(experts)))
    done = g("Loop", count, None, empty, body=body.graph(empty))
    return g.reshape(done, out)


class _Matrix:
    """A stack of matrices [e, n, h], of which one is read at a time."""

    def __init__(
        self, parts: quantized.Blocks | None, name: str | None, elem: Elem, tail: tuple[int, ...]
    ) -> None:
        self.parts, self.name, self.elem, self.tail = parts, name, elem, tail

    @staticmethod
    def of(low: Lowering, w: Value, elem: Elem) -> _Matrix:
        """Of a weight."""
        tail = tuple(d for d in w.type.dims[1:] if isinstance(d, int))
        if isinstance(w, Param) and isinstance(w.type.elem, Quant):
            return _Matrix(quantized.Blocks.of(w, elem, transposed=False), None, elem, tail)
        return _Matrix(None, low.weight(w, elem), elem, tail)

    def read(self, g: Graph, expert: str) -> str:
        """That of one ``expert``."""
        if self.parts is None:
            assert self.name is not None
            return g("Gather", self.name, expert, axis=0)
        return g.reshape(quantized.taken(g, expert, (), self.parts, self.elem), self.tail)


class _Body:
    """What the loop does for one expert; ``out`` is the type of a row of results."""

    def __init__(
        self, g: Graph, flat: str, rows: str, each: int, matrix: _Matrix, shift: str | None, out: Type
    ) -> None:
        self.outer, self.flat, self.rows, self.each = g, flat, rows, each
        self.matrix, self.shift, self.out = matrix, shift, out

    def used(self, experts: int) -> str:
        """The numbers of the experts that are chosen, i64[u]; those that there are not are left out."""
        g = self.outer
        inside = g(
            "And",
            *(
                g(op, self.flat, g.constant(bound, I64))
                for op, bound in (("GreaterOrEqual", 0), ("Less", experts))
            ),
        )
        self.numbers = g("Unique", g("Compress", self.flat, inside, axis=0), sorted=1)
        return self.numbers

    def graph(self, empty: str) -> Graph:
        """The body: the number of the turn, a condition that always holds, and the rows made so far."""
        g = self.outer.inner()
        turn = g.local("turn", Type(I64))
        always = g.local("go", Type(BOOL))
        made = g.local("rows", Type(self.out.elem, (sym("R"), *self.out.dims)))
        expert = g("Gather", self.numbers, turn, axis=0)
        at = g("NonZero", g("Equal", self.flat, expert))
        places = g.scalar(at)
        source = places if self.each == 1 else g("Div", places, g.constant(self.each, I64))
        shift = None if self.shift is None else g("Gather", self.shift, expert, axis=0)
        y = g("Gemm", g("Gather", self.rows, source, axis=0), self.matrix.read(g, expert), shift, transB=1)
        done = g("ScatterND", made, g.transpose(at, 1, 0), y)
        g.outputs[g("Identity", always)] = Type(BOOL)
        g.outputs[done] = g.inputs[made]
        return g
