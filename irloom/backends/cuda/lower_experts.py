"""Lowering of experts and heads, and of what is left of a row."""

from __future__ import annotations

from irloom.ir.elem import Quant
from irloom.ir.graph import Arg, Node, Value

from .kernels.form import Gate
from .lower import PRODUCTS, Lowering, floats, lowers
from .lower_products import sum_behind

STORED = ("i8", "u8", "i4", "u4", "f8e4m3", "f8e5m2")
"""Entries of quantized experts that kernels read."""
WIDEST = 8192
"""Entries of a row of which the largest are found."""


@lowers("moe")
def moe(f: Lowering, n: Node) -> bool:
    """Both products, the gate between them, and the sum behind where it leads to the next block."""
    x, index, weights, up, down, up_bias, down_bias = [*n.args, None, None][:7]
    if not (f.rows(x) and f.rows(weights) and _choices(index) and _stack(f, up) and _stack(f, down)):
        return f.decline(n, ", ".join(map(str, n.operands[:5])))
    result, residual = _total(f, n, n.result)
    operands = x, index, weights, up, down, up_bias, down_bias, residual
    attrs = {"gate": Gate(str(n.attrs["act"]))}
    return f.launch("moe", n, *operands, results=[result], attrs=attrs, given=("work", "step"))


@lowers("expert_linear")
def expert_linear(f: Lowering, n: Node) -> bool:
    """A product for each choice; where it begins a mixture, all of that."""
    x, index, weight, bias = [*n.args, None][:4]
    if not (isinstance(x, Value) and floats(x) and _choices(index) and _stack(f, weight)):
        return f.decline(n, ", ".join(map(str, n.operands[:3])))
    if f.rows(x) and (woven := _woven(f, n)):
        gate, down, total = woven
        result, residual = _total(f, n, total.result)
        operands = x, index, total.args[1], weight, down.args[2], bias, [*down.args, None][3], residual
        return f.launch("moe", n, *operands, results=[result], attrs={"gate": gate}, given=("work", "step"))
    return f.launch("expert_linear", n, x, index, weight, bias, given=("work", "step"))


def _woven(f: Lowering, n: Node) -> tuple[Gate, Node, Node] | None:
    """The gate, the second product and the sum behind ``n``, whose rows are gates and values in turn."""
    parts = f.readers.get(n.result, [])
    if len(parts) != 2 or n.result in f.func.returns:
        return None
    gates, values = parts
    if not (isinstance(gates, Node) and isinstance(values, Node) and _every_second(gates, 0)):
        return None
    mul = f.only_reader(gates.result)
    if not _every_second(values, 1) or mul is None or f.only_reader(values.result) is not mul:
        return None
    if mul.op.name != "clamped_silu_mul" or mul.args != [gates.result, values.result]:
        return None
    down = f.only_reader(mul.result)
    if down is None or down.op.name != "expert_linear" or down.args[:2] != [mul.result, n.args[1]]:
        return None
    total = f.only_reader(down.result)
    if total is None or total.op.name != "weighted_sum" or total.args[0] is not down.result:
        return None
    if not (_stack(f, down.args[2]) and f.there(total.args[1], n) and f.rows(total.args[1])):
        return None
    f.folded.update(map(id, (gates, values, mul, down, total)))
    limit, alpha, shift = (float(str(mul.attrs[k])) for k in ("limit", "alpha", "shift"))
    return Gate("silu", woven=True, limit=limit, alpha=alpha, shift=shift), down, total


def _every_second(n: Node, start: int) -> bool:
    """Whether a node takes every second entry of its operand's last dim, from ``start`` on."""
    if n.op.name != "slice" or n.attrs["dim"] not in (-1, 2) or n.attrs["step"] != 2:
        return False
    return n.attrs["start"] == start and n.attrs["stop"] is None


@lowers("head_linear")
def head_linear(f: Lowering, n: Node) -> bool:
    """Heads are experts that every token chooses."""
    x, weight = n.args
    if not (isinstance(x, Value) and floats(x) and _stack(f, weight)):
        return f.decline(n, f"{n.operands[0]} by {n.operands[1]}")
    return f.launch("head_linear", n, x, weight, given=("work",))


@lowers("weighted_sum")
def weighted_sum(f: Lowering, n: Node) -> bool:
    x, weights = n.args
    if not (isinstance(x, Value) and floats(x) and f.rows(weights)):
        return f.decline(n, f"{n.operands[0]} by {n.operands[1]}")
    return f.launch("weighted_sum", n, x, weights)


@lowers("topk", "argmax", "softmax")
def of_rows(f: Lowering, n: Node) -> bool:
    """A program per row: of a matrix, or of what has all its rows behind each other."""
    x = n.args[0]
    whole = isinstance(x, Value) and f.storage.get(x) is x and floats(x)
    if (
        not isinstance(x, Value)
        or not (f.rows(x) or whole)
        or n.attrs.get("dim", -1) not in (-1, x.type.rank - 1)
    ):
        return f.decline(n, f"{n.operands[0]}")
    width = x.type.dims[-1]
    if n.op.name == "topk" and not (isinstance(width, int) and width <= WIDEST):
        return f.decline(n, f"rows of {x.type}")
    return f.launch(n.op.name, n, x, attrs=n.attrs)


def _total(f: Lowering, n: Node, made: Value) -> tuple[Value, Arg]:
    """What experts end in, where ``n`` begins them and ``made`` is their sum; and what that is added to."""
    cast = f.only_reader(made)
    if cast is not None and cast.op.name == "cast" and floats(cast.result):
        f.folded.add(id(cast))
        made = cast.result
    return sum_behind(f, made, n) or _sum(f, made, n) or _sum_of_two(f, made, n) or (made, None)


def _sum(f: Lowering, made: Value, n: Node) -> tuple[Value, Arg] | None:
    """The plain sum that alone reads ``made``, and what that is added to."""
    other = _other(f, made, n)
    if other is None:
        return None
    add, x = other
    f.folded.add(id(add))
    return add.result, x


def _sum_of_two(f: Lowering, made: Value, n: Node) -> tuple[Value, Arg] | None:
    """``made`` with the residual stream, where both are added to a product behind: that ends in their sum."""
    product = f.only_reader(made)
    if (
        product is None
        or product.op.name not in PRODUCTS
        or len(product.args) < 4
        or product.args[3] is not made
    ):
        return None
    other = _other(f, product.result, n)
    if other is None:
        return None
    add, x = other
    f.folded.add(id(add))
    f.renamed[product.result] = add.result
    return made, x


def _other(f: Lowering, made: Value, n: Node) -> tuple[Node, Value] | None:
    """The sum that alone reads ``made``, and what is added: of the same type, and there before ``n``."""
    add = f.only_reader(made)
    if add is None or add.op.name != "add":
        return None
    x = add.args[1] if add.args[0] is made else add.args[0]
    if not isinstance(x, Value) or x is made or not f.there(x, n):
        return None
    return (add, x) if x.type == made.type == add.result.type else None


def _choices(index: Arg) -> bool:
    """Whether an operand is the numbers of experts as routers write them."""
    return isinstance(index, Value) and index.type.rank == 2 and str(index.type.elem) == "i32"


def _stack(f: Lowering, weight: Arg) -> bool:
    """Whether kernels read the matrices of experts or heads as they are stored."""
    if not f.is_weight(weight) or not isinstance(weight, Value):
        return False
    quant = weight.type.elem
    if not isinstance(quant, Quant):
        return floats(weight)
    return quant.base.name in STORED and quant.group % 32 == 0
