"""How routers and experts become kernel calls."""

from __future__ import annotations

from irloom.backends.cpu.lower import Lowering
from irloom.backends.cpu.place import by_rows
from irloom.backends.cpu.program import lowers
from irloom.ir.elem import ELEMS
from irloom.ir.graph import Arg, Node, Param, Value

ACTS = {"silu": "silu", "gelu": "gelu_erf", "gelu_tanh": "gelu_tanh"}
"""The kernels' names of what a gate may be."""


@lowers("expert_linear")
def expert_linear(f: Lowering, n: Node) -> bool:
    """Products with the packed weights of the experts in use."""
    x, index, w, *shift = n.args
    if not f.f32(x, n.result) or not _choices(f, index):
        return False
    packed = _stack(f, w, shift[0] if shift else None)
    if packed is None:
        return False
    f.place(n.result)
    f.call("expert_linear", x, index, packed, n.result, loc=n.loc)
    return True


@lowers("head_linear")
def head_linear(f: Lowering, n: Node) -> bool:
    """Products of heads with their packed weights."""
    x, w = n.args
    packed = _stack(f, w, None)
    if not f.f32(x, n.result) or packed is None:
        return False
    f.place(n.result)
    f.call("head_linear", x, packed, n.result, loc=n.loc)
    return True


@lowers("moe")
def moe(f: Lowering, n: Node) -> bool:
    """Gated experts from their choice to the sum."""
    x, index, weights, up, down, *shifts = n.args
    if not f.f32(x, weights, n.result) or not _choices(f, index):
        return False
    shifts = [*shifts, None, None]
    stacks = [_stack(f, up, shifts[0]), _stack(f, down, shifts[1])]
    if None in stacks:
        return False
    f.place(n.result)
    act = ACTS[str(n.attrs["act"])]
    f.call("moe", f'"{act}"', x, index, weights, *stacks, n.result, loc=n.loc)
    return True


@lowers("softmax")
def softmax(f: Lowering, n: Node) -> bool:
    """Along the rows of a matrix."""
    x = n.args[0]
    if not f.f32(x) or n.result.type.rank != 2:
        return False
    f.place(n.result)
    f.call("softmax", x, n.result, loc=n.loc)
    return True


@lowers("topk")
def topk(f: Lowering, n: Node) -> bool:
    """Along the last dim: values in f32, places in i32."""
    x = n.args[0]
    if not isinstance(x, Value) or x.type.rank < 2 or not f.f32(x):
        return False
    for made in n.results:
        f.place(made)
    f.call("topk", x, *n.results, loc=n.loc)
    return True


@lowers("route")
def route(f: Lowering, n: Node) -> bool:
    """From logits to the choice in one pass."""
    x, bias = (*n.args, None)[:2]
    if not f.f32(x, n.results[0]) or not (bias is None or f.is_weight(bias)):
        return False
    for made in n.results:
        f.place(made)
    attrs = {k: v for k, v in n.attrs.items() if k != "score"}
    given = f.weight(bias, "vector") if isinstance(bias, Param) else "None"
    f.call("route", f'"{n.attrs["score"]}"', x, given, *n.results, **attrs, loc=n.loc)
    return True


@lowers("gather")
def gather(f: Lowering, n: Node) -> bool:
    """Entries of the last dim, such as the scores of the experts that were chosen."""
    x, index = n.args
    if not f.f32(x) or not _choices(f, index):
        return False
    f.place(n.result)
    f.call("gather", x, index, n.result, loc=n.loc)
    return True


def _choices(f: Lowering, index: Arg) -> bool:
    """Whether an operand holds the experts of each token as the kernels read them."""
    return isinstance(index, Value) and index.type.elem == ELEMS["i32"] and by_rows(index.type.dims)


def _stack(f: Lowering, w: Arg, bias: Arg) -> str | None:
    """The packed weight of a stack of experts, None where the operands are no weights."""
    if not f.is_weight(w) or not (bias is None or isinstance(bias, Param)):
        return None
    return f.weight(w, "packed", bias)
