"""Quantized weights: ``DequantizeLinear`` by blocks, in front of the product that reads it.

ONNX Runtime runs the two as one kernel (``MatMulNBits``) where the weight lies as ``[in, out]`` and a block
has 16, 32, 64, ... entries; so it is stored transposed, and a scheme with one scale a row has that scale once
a block. A zero that is no integer is no input of the operator: ``x @ (q - z) s`` is ``x @ (q s)`` less the
sum of ``x`` over each group, times ``z s``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from irloom.ir.dims import Dim
from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.errors import IRError
from irloom.ir.graph import Param

from .graph import Graph
from .weights import Stored, stored_name

F32, U8 = ELEMS["f32"], ELEMS["u8"]
LEAST, MOST = 16, 256
"""Entries of a block that ONNX Runtime's kernel takes, powers of two."""


@dataclass(frozen=True)
class Blocks:
    """The parts of a quantized weight in the file, scaled along ``axis`` in blocks of ``size`` entries."""

    values: Stored
    scales: Stored
    zeros: Stored | None
    shifts: Stored | None
    axis: int
    size: int

    @staticmethod
    def of(p: Param, elem: Elem, transposed: bool) -> Blocks:
        """Of ``p``; ``elem`` is that of what is computed with it."""
        quant = p.type.elem
        assert isinstance(quant, Quant)
        if quant.rows != 1:
            raise IRError(
                f"onnx: `{p.name}` is {quant} = {quant.declaration()}, of which rows share a scale",
                hint="quantize(int8), or quantize(int4)",
            )
        dims = tuple(d for d in p.type.dims if isinstance(d, int))
        small = tuple(d for d in quant.scale_dims(dims) if isinstance(d, int))
        size = dims[-1] // small[-1]
        repeat = _blocks(size) if not quant.group else 1
        small = (*small[:-1], small[-1] * repeat)
        if transposed:
            dims, small = ((*d[:-2], d[-1], d[-2]) for d in (dims, small))
        axis = len(dims) - (2 if transposed else 1)
        name = stored_name(p)

        def part(called: str, which: str, of: Elem) -> Stored:
            return Stored(f"{name}.{called}", p, which, of, small, transposed, repeat)  # type: ignore[arg-type]

        zero = quant.zero
        return Blocks(
            Stored(name, p, "values", quant.base, dims, transposed),
            part("scales", "scales", elem),
            part("zeros", "zeros", quant.base) if zero is not None and zero.kind != "float" else None,
            part("shifts", "shifts", elem) if zero is not None and zero.kind == "float" else None,
            axis,
            size // repeat,
        )

    def scaled(self, g: Graph) -> str:
        """Values times scales, with their zeros if those are integers."""
        if self.values.elem.kind == "float":
            raise IRError(
                f"onnx: `{self.values.name}` is {self.values.elem}, in blocks with a scale each",
                hint="quantize(int8), or quantize(int4)",
            )
        zeros = g.weight(self.zeros) if self.zeros else None
        given = g.weight(self.values), g.weight(self.scales), zeros
        return g("DequantizeLinear", *given, axis=self.axis, block_size=self.size)


def _blocks(row: int) -> int:
    """In how many blocks a row is cut that has one scale."""
    size = MOST
    while size >= LEAST and row % size:
        size //= 2
    return row // size if size >= LEAST else 1


def dequantized(g: Graph, p: Param, elem: Elem) -> str:
    """A quantized weight as it dequantizes to, for what is no product."""
    b = Blocks.of(p, elem, transposed=False)
    x = b.scaled(g)
    if b.shifts is None:
        return x
    groups = (*b.scales.dims, b.size)
    shifts = g("Unsqueeze", g.weight(b.shifts), g.ints(len(b.scales.dims)))
    return g.reshape(g("Sub", g.reshape(x, groups), shifts), b.values.dims)


def product(g: Graph, x: str, dims: tuple[Dim, ...], p: Param, elem: Elem) -> str:
    """``x @ weight.T`` for ``x`` of ``dims``."""
    b = Blocks.of(p, elem, transposed=True)
    out = g("MatMul", x, b.scaled(g))
    if b.shifts is None:
        return out
    sums = g("ReduceSum", g.reshape(x, (*dims[:-1], b.scales.dims[0], b.size)), g.ints(-1), keepdims=0)
    return g("Sub", out, g("MatMul", sums, g.weight(b.shifts)))


def rows(g: Graph, ids: str, dims: tuple[Dim, ...], p: Param, elem: Elem) -> str:
    """Rows ``ids`` of a quantized table: those of its parts, dequantized in f32. Ids have ``dims``."""
    return g.cast(taken(g, ids, dims, Blocks.of(p, F32, transposed=False), F32), F32, elem)


def taken(g: Graph, ids: str, dims: tuple[Dim, ...], b: Blocks, elem: Elem) -> str:
    """Of a table or a stack of them the entries ``ids``, which have ``dims``, dequantized in ``elem``."""

    def part(of: Stored) -> str:
        return g("Unsqueeze", _taken(g, ids, of, dims, elem), g.ints(-1))

    x = g.reshape(_taken(g, ids, b.values, dims, elem), (*dims, *b.scales.dims[1:], b.size))
    if b.zeros is not None:
        x = g("Sub", x, part(b.zeros))
    x = g("Mul", x, part(b.scales))
    if b.shifts is not None:
        x = g("Sub", x, part(b.shifts))
    return g.reshape(x, (*dims, *b.values.dims[1:]))


def _taken(g: Graph, ids: str, part: Stored, dims: tuple[Dim, ...], elem: Elem) -> str:
    """Entries of a part; of four-bit values two come out of each byte."""
    if part.elem.bits != 4:
        return g.cast(g("Gather", g.weight(part), ids, axis=0), part.elem, elem)
    packed = replace(part, elem=U8, dims=(*part.dims[:-1], part.dims[-1] // 2), pairs=True)
    found = g("Gather", g.weight(packed), ids, axis=0)
    low = g("BitwiseAnd", found, g.constant(15, U8))
    high = g("BitShift", found, g.constant(4, U8), direction="RIGHT")
    both = g("Concat", *(g("Unsqueeze", x, g.ints(-1)) for x in (low, high)), axis=-1)
    x = g.reshape(g("Cast", both, to=elem), (*dims, *part.dims[1:]))
    if part.elem.kind == "uint":
        return x
    wrapped = g("Sub", x, g.constant(16.0, elem))
    return g("Where", g("Less", x, g.constant(8.0, elem)), x, wrapped)
