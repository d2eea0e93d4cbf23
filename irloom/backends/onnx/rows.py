"""How ops on rows become ONNX operators: products, norms, embeddings, the last row of each sequence."""

from __future__ import annotations

from irloom.ir.elem import ELEMS, Quant
from irloom.ir.graph import Node, Param, Value
from irloom.ir.types import Type

from . import quantized
from .elementwise import operand, result_elem
from .lower import Lowering, Operand, lowers

F32, I64 = ELEMS["f32"], ELEMS["i64"]


@lowers("linear", raw=("weight",))
def linear(low: Lowering, n: Node, x: str, weight: Value, bias: Operand) -> str:
    """``Gemm`` with the weight as it lies in the checkpoint, or ``MatMul`` with what it dequantizes to."""
    given = operand(low, n, 2, bias, result_elem(n)) if bias is not None else None
    return product(low, x, _type(n, 0), weight, given)


def product(low: Lowering, x: str, t: Type, weight: Value, bias: str | None) -> str:
    """``x @ weight.T + bias`` for ``x`` of type ``t``, in its element."""
    g, elem, width = low.g, t.plain, weight.type.dims[0]
    if isinstance(weight, Param) and isinstance(weight.type.elem, Quant):
        out = quantized.product(g, x, t.dims, weight, elem)
        return g("Add", out, bias) if bias else out
    rows = x if t.rank == 2 else g.reshape(x, (-1, t.dims[-1]))
    out = g("Gemm", rows, low.weight(weight, elem), bias, transB=1)
    return out if t.rank == 2 else g.reshape(out, (*t.dims[:-1], width))


def _type(n: Node, at: int) -> Type:
    a = n.args[at]
    assert isinstance(a, Value)
    return a.type


@lowers("matmul")
def matmul(low: Lowering, n: Node, a: str, b: str) -> str:
    """As ONNX has it."""
    return low.g("MatMul", a, b)


@lowers("head_linear", raw=("weight",))
def head_linear(low: Lowering, n: Node, x: str, weight: Value) -> str:
    """A product per head; rows are turned, the weight stays as it is stored."""
    g = low.g
    made = g("MatMul", low.weight(weight, result_elem(n)), g.transpose(x, 1, 2, 0))
    return g.transpose(made, 2, 0, 1)


@lowers("rms_norm")
def rms_norm(low: Lowering, n: Node, x: str, weight: Operand) -> str:
    """``RMSNormalization``, which counts in f32 and scales in the element of ``x``."""
    return _norm(low, n, "RMSNormalization", x, [weight])


@lowers("layer_norm")
def layer_norm(low: Lowering, n: Node, x: str, weight: Operand, bias: Operand) -> str:
    """``LayerNormalization``."""
    return _norm(low, n, "LayerNormalization", x, [weight, bias])


def _norm(low: Lowering, n: Node, op: str, x: str, given: list[Operand]) -> str:
    """A norm in the element of ``x``, or in f32 where a weight is not in that; a weight must be given."""
    g, t, d, eps = low.g, _type(n, 0), _type(n, 0).dims[-1], n.attrs["eps"]
    types = [_type(n, i) for i, w in enumerate(given, 1) if w is not None]
    wide = t.plain if all(w.plain == t.plain for w in types) else F32
    weights = [None if w is None else g.cast(w, _type(n, i).plain, wide) for i, w in enumerate(given, 1)]
    assert isinstance(d, int) and n.attrs["groups"] == 1
    scale = weights[0] or g.constant([1.0] * d, wide)
    return g.cast(g(op, g.cast(x, t.plain, wide), scale, *weights[1:], axis=-1, epsilon=eps), wide, t.plain)


@lowers("embedding", raw=("table",))
def embedding(low: Lowering, n: Node, ids: str, table: Value) -> str:
    """``Gather`` of rows, of a quantized table of its parts."""
    g, elem = low.g, result_elem(n)
    if isinstance(table, Param) and isinstance(table.type.elem, Quant):
        return quantized.rows(g, ids, _type(n, 0).dims, table, elem)
    stored = table.type.plain
    return g.cast(g("Gather", low.weight(table, stored), ids, axis=0), stored, elem)


@lowers("last_rows")
def last_rows(low: Lowering, n: Node, x: str, seqs: None) -> str:
    """``Gather`` of the rows that the step names."""
    return low.g("Gather", x, low.g.given("last"), axis=0)


@lowers("positions")
def positions(low: Lowering, n: Node, seqs: None) -> str:
    """Given at every step."""
    return low.g.given("positions")


@lowers("gather")
def gather(low: Lowering, n: Node, x: str, index: str) -> str:
    """``GatherElements`` along the last dim."""
    return low.g("GatherElements", x, index, axis=_type(n, 0).rank - 1)


@lowers("scatter")
def scatter(low: Lowering, n: Node, x: str, index: str, src: Operand) -> str:
    """``ScatterElements`` along the last dim."""
    g = low.g
    given = operand(low, n, 2, src, result_elem(n))
    if not isinstance(n.args[2], Value) or not _type(n, 2).dims:
        given = g("Expand", given, g("Shape", index))
    return g("ScatterElements", x, g.cast(index, _type(n, 1).plain, I64), given, axis=_type(n, 0).rank - 1)
