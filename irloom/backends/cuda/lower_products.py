"""Lowering of products, with what is folded into them."""

from __future__ import annotations

from typing import Any

from irloom.ir.elem import Quant
from irloom.ir.errors import IRError
from irloom.ir.graph import Arg, Node, Value
from irloom.ir.show import show_typed

from .kernels.form import Form
from .lower import Lowering, Prologue, floats, lowers
from .lower_elementwise import GATES, gate_of


@lowers("linear", "linear_act")
def product(f: Lowering, n: Node) -> bool:
    """``x @ weight.T`` with its prologue and its epilogue."""
    x, weight, bias, residual = [*n.args, None, None][:4]
    if not f.is_weight(weight) or not isinstance(x, Value) or x.type.rank != 2 or not floats(n.result):
        return f.decline(n, f"{n.operands[0]} by {n.operands[1]}")
    if not f.unmade([bias]):
        return f.decline(n, "a bias that is computed")
    shared = {k: n.attrs.get(k) for k in ("act", "scale", "softcap")}
    if residual is None and (gate := _gate(f, n, bias)):
        result, act = gate
        shape = {"act": act, "gated": True, "emits": _emitted(f, result)}
        return _launch(f, n, result, (x, weight, bias, None), shared | shape)
    result = f.renamed.get(n.result, n.result)
    if residual is None and (total := sum_behind(f, n.result, n)):
        result, residual = total
    return _launch(f, n, result, (x, weight, bias, residual), shared)


def _launch(f: Lowering, n: Node, out: Value, args: tuple[Arg, ...], shape: dict[str, Any]) -> bool:
    x, weight, bias, residual = args
    read = f.read(x)
    assert isinstance(x, Value)
    quant = read.quant or (x.type.elem if isinstance(x.type.elem, Quant) else None)
    shape = {**shape, "emitted": read.emitted}
    form = Form(eps=read.eps, quant=quant, **{k: v for k, v in shape.items() if v is not None})
    operands = read.x, weight, bias, residual, read.norm
    attrs, given = {"form": form}, ("work",)
    over = residual if f.alone(residual, operands) else None
    return f.launch("product", n, *operands, results=[out], attrs=attrs, given=given, over=over)


def _gate(f: Lowering, n: Node, bias: Arg) -> tuple[Value, str] | None:
    """The gated value that alone is made of a product's two halves, and its activation."""
    parts = f.only_reader(n.result)
    if n.op.name != "linear" or parts is None or parts.op.name != "split" or len(parts.results) != 2:
        return None
    gate, up = parts.results
    mul = f.only_reader(gate)
    halves = gate.type.dims == up.type.dims and parts.attrs["dim"] in (-1, 1)
    if mul is None or mul.op.name not in GATES or f.only_reader(up) is not mul or not halves:
        return None
    if mul.args[:2] != [gate, up]:
        return None
    f.folded.update((id(parts), id(mul)))
    return mul.result, gate_of(mul)


def _emitted(f: Lowering, gated: Value) -> Quant | None:
    """What the product that alone reads a gated value rounds it to: for many rows the gate's product does.

    None where rounded rows have no room, or not in whole steps of 16 bytes, in the gated value's memory.
    """
    n, width = f.only_reader(gated), gated.type.dims[-1]
    if n is None or n.op.name != "quantize" or f.product_reading(n.result) is None:
        return None
    quant = n.result.type.elem
    if not isinstance(quant, Quant) or not isinstance(width, int) or width % 16 or quant.group % 16:
        return None
    f.prologue(gated, Prologue(gated, emitted=True))
    return quant


def sum_behind(f: Lowering, made: Value, n: Node) -> tuple[Value, Arg] | None:
    """The sum that alone reads what is ``made`` at ``n``, and what that is added to: the step to the next
    block.
    """
    add = f.only_reader(made)
    if add is None or add.op.name != "add_rms_norm" or add.attrs["inner_eps"] is not None:
        return None
    if not f.unmade(add.args[2:]):
        return None
    x, y = add.args[:2]
    other = x if y is made else y
    if other is made or not f.there(other, n) or not isinstance(other, Value):
        return None
    if other.type != made.type:
        return None
    f.summed[id(add)] = add.results[0]
    return add.results[0], other


@lowers("quantize")
def quantize(f: Lowering, n: Node) -> bool:
    """In the product that alone reads it; else once for all that do, behind its norm where it has one."""
    x, quant = n.args[0], n.result.type.elem
    assert isinstance(x, Value) and isinstance(quant, Quant)
    if quant.rows != 1 or quant.base.name != "f8e4m3":
        raise IRError(
            f"cuda: {show_typed(n.result)}, {quant.declaration()}: kernels round tokens one by one to f8e4m3",
            hint="quantize(fp8, activations=token), or activations=block",
        )
    read = f.read(x)
    if f.product_reading(n.result):
        return f.prologue(n.result, f.rounded(read, quant))
    if read.normed:
        return f.launch("rms_norm", n, read.x, read.norm, attrs={"eps": read.eps})
    return f.launch("quantize", n, x)
