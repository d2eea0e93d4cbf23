"""How ops on rows become ONNX operators: products, norms, embeddings, the last row of each sequence."""

from __future__ import annotations

from irloom.ir.elem import ELEMS, Quant
from irloom.ir.graph import Node, Param, Value
from irloom.ir.types import Type

from . import quantized
from .elementwise import activate, operand, result_elem, squeezed
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


@lowers("linear_act", raw=("weight",))
def linear_act(low: Lowering, n: Node, x: str, weight: Value, bias: Operand, residual: Operand) -> str:
    """The product, then each part of its epilogue."""
    g, elem = low.g, result_elem(n)
    out = linear(low, n, x, weight, bias)
    act, scale, cap = n.attrs["act"], n.attrs["scale"], n.attrs["softcap"]
    if act is not None:
        out = activate(low, str(act), out, elem)
    if isinstance(scale, (int, float)) and scale != 1:
        out = g("Mul", out, g.constant(float(scale), elem))
    if isinstance(cap, (int, float)):
        out = squeezed(g, out, cap, elem)
    return out if residual is None else g("Add", operand(low, n, 3, residual, elem), out)


@lowers("matmul")
def matmul(low: Lowering, n: Node, a: str, b: str) -> str:
    """As ONNX has it."""
    return low.g("MatMul", a, b)


@lowers("head_linear", raw=("weight",))
def head_linear(low: Lowering, n: Node, x: str, weight: Value) -> str:
    """A product per head, with heads first."""
    g, elem = low.g, result_elem(n)
    w = g.transpose(low.weight(weight, elem), 0, 2, 1)
    return g.transpose(g("MatMul", g.transpose(x, 1, 0, 2), w), 1, 0, 2)


@lowers("rms_norm")
def rms_norm(low: Lowering, n: Node, x: str, weight: Operand) -> str:
    """``RMSNormalization``, which counts in f32 and scales in the element of ``x``."""
    return rms(low, x, _type(n, 0), _weight(n, 1, weight), n.attrs["eps"], n.attrs["groups"])


Scale = tuple[str, Type] | None
"""A weight of a norm and its type; None for ones."""


def _weight(n: Node, at: int, name: Operand) -> Scale:
    return None if name is None else (name, _type(n, at))


def rms(low: Lowering, x: str, t: Type, weight: Scale, eps: object, groups: object = 1) -> str:
    """``rms_norm`` of ``x`` of type ``t``, in f32 where the weight is not in its element."""
    g, d = low.g, t.dims[-1]
    assert isinstance(eps, float) and isinstance(groups, int) and isinstance(d, int)
    wide = t.plain if weight is None or weight[1].plain == t.plain else F32
    scale = None if weight is None else g.cast(weight[0], weight[1].plain, wide)
    x = g.cast(x, t.plain, wide)
    if groups == 1:
        ones = scale or g("Expand", g.constant(1.0, wide), g.ints(d))
        return g.cast(g("RMSNormalization", x, ones, axis=-1, epsilon=eps), wide, t.plain)
    ones = g("Expand", g.constant(1.0, wide), g.ints(d // groups))
    parts = g(
        "RMSNormalization", g.reshape(x, (*t.dims[:-1], groups, d // groups)), ones, axis=-1, epsilon=eps
    )
    out = g.reshape(parts, t.dims)
    return g.cast(g("Mul", out, scale) if scale else out, wide, t.plain)


@lowers("layer_norm")
def layer_norm(low: Lowering, n: Node, x: str, weight: Operand, bias: Operand) -> str:
    """``LayerNormalization``."""
    scales = _weight(n, 1, weight), _weight(n, 2, bias)
    return layer(low, x, _type(n, 0), *scales, n.attrs["eps"], n.attrs["groups"])


def layer(low: Lowering, x: str, t: Type, weight: Scale, bias: Scale, eps: object, groups: object = 1) -> str:
    """``layer_norm`` of ``x`` of type ``t``, in f32 where a weight is not in its element."""
    g, d = low.g, t.dims[-1]
    assert isinstance(eps, float) and isinstance(groups, int) and isinstance(d, int)
    wide = t.plain if all(w is None or w[1].plain == t.plain for w in (weight, bias)) else F32
    scale, shift = (None if w is None else g.cast(w[0], w[1].plain, wide) for w in (weight, bias))
    x = g.cast(x, t.plain, wide)
    if groups == 1:
        scale = scale or g("Expand", g.constant(1.0, wide), g.ints(d))
        return g.cast(g("LayerNormalization", x, scale, shift, axis=-1, epsilon=eps), wide, t.plain)
    ones = g("Expand", g.constant(1.0, wide), g.ints(d // groups))
    cut = g.reshape(x, (*t.dims[:-1], groups, d // groups))
    out = g.reshape(g("LayerNormalization", cut, ones, axis=-1, epsilon=eps), t.dims)
    out = g("Mul", out, scale) if scale else out
    return g.cast(g("Add", out, shift) if shift else out, wide, t.plain)


@lowers("l2_norm")
def l2_norm(low: Lowering, n: Node, x: str) -> str:
    """``x / sqrt(sum(x ** 2) + eps)``, in f32."""
    g, elem, eps = low.g, result_elem(n), n.attrs["eps"]
    assert isinstance(eps, float)
    x = g.cast(x, elem, F32)
    total = g("ReduceSum", g("Mul", x, x), g.ints(-1), keepdims=1)
    return g.cast(g("Div", x, g("Sqrt", g("Add", total, g.constant(eps, F32)))), F32, elem)


@lowers("add_rms_norm")
def add_rms_norm(low: Lowering, n: Node, x: str, y: str, weight: Operand, inner: Operand) -> tuple[str, str]:
    """The sum, and its norm."""
    t = _type(n, 0)
    if n.attrs["inner_eps"] is not None:
        y = rms(low, y, _type(n, 1), _weight(n, 3, inner), n.attrs["inner_eps"])
    total = low.g("Add", x, y)
    return total, rms(low, total, t, _weight(n, 2, weight), n.attrs["eps"])


@lowers("rms_norm_add")
def rms_norm_add(low: Lowering, n: Node, x: str, y: str, weight: Operand) -> str:
    """The norm, then the sum."""
    return low.g("Add", x, rms(low, y, _type(n, 1), _weight(n, 2, weight), n.attrs["eps"]))


@lowers("add_layer_norm")
def add_layer_norm(low: Lowering, n: Node, x: str, y: str, weight: Operand, bias: Operand) -> tuple[str, str]:
    """The sum, and its norm."""
    total = low.g("Add", x, y)
    scales = _weight(n, 2, weight), _weight(n, 3, bias)
    return total, layer(low, total, _type(n, 0), *scales, n.attrs["eps"])


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
