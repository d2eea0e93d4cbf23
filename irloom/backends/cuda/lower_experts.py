"""Lowering of routers, experts and heads, and of what is left of a row."""

from __future__ import annotations

from irloom.ir.elem import Quant
from irloom.ir.graph import Arg, Node, Value

from .kernels.form import Form
from .lower import Lowering, floats, lowers
from .lower_products import sum_behind
from .program import Launch

STORED = ("i8", "u8", "i4", "u4", "f8e4m3", "f8e5m2")
"""Entries of quantized experts that kernels read."""
WIDEST = 8192
"""Entries of a row of which the largest are found."""


@lowers("route")
def route(f: Lowering, n: Node) -> bool:
    """A program per token; with the router's product and the norm in front, where they are just that.

    Kernels compute in f32 whatever they read and write: casts on both sides are part of it.
    """
    logits, bias = [*n.args, None][:2]
    if not f.rows(logits):
        return f.decline(n, f"{n.operands[0]}")
    logits, results = _uncast(f, n, logits), [_cast(f, n.results[0]), n.results[1]]
    match f.steps[-2:]:
        case [Launch(kernel="rms_norm") as norm, Launch(kernel="product") as product]:
            if (logits,) == product.results and _routes(f, n, norm, product):
                del f.steps[-2:]
                (x, weight), (_, router, shift, *_) = norm.args, product.args
                results, attrs = [*norm.results, *results], {**n.attrs, "eps": norm.attrs["eps"]}
                operands, given = (x, weight, router, shift, bias), ("work", "step")
                return f.launch("norm_route", n, *operands, results=results, attrs=attrs, given=given)
    return f.launch("route", n, logits, bias, results=results, attrs=n.attrs, given=("step",))


def _uncast(f: Lowering, n: Node, logits: Arg) -> Arg:
    """What ``logits`` are a wider copy of, made for ``n`` alone by the launch in front."""
    match f.steps[-1:]:
        case [Launch(kernel="elementwise", node=cast, args=(Value() as x,)) as launch]:
            made = launch.results == (logits,) == (cast.result,) and cast.op.name == "cast"
            if (
                made
                and f.only_reader(cast.result) is n
                and f.rows(x)
                and cast.result.type.plain.name == "f32"
            ):
                f.steps.pop()
                return x
    return logits


def _cast(f: Lowering, weights: Value) -> Value:
    """What ``weights`` are cast to, where nothing else reads them."""
    cast = f.only_reader(weights)
    if cast is None or cast.op.name != "cast" or not floats(cast.result):
        return weights
    f.folded.add(id(cast))
    return cast.result


def _routes(f: Lowering, n: Node, norm: Launch, product: Launch) -> bool:
    """Whether ``product`` makes logits of what ``norm`` makes, for ``n`` alone and in no other way."""
    x, router, _, residual, weight = product.args
    plain = (
        product.attrs["form"] == Form() and residual is None and weight is None and set(norm.attrs) == {"eps"}
    )
    read = (x,) == norm.results and len(norm.args) == 2
    alone = (last := f.only_reader(product.results[0])) is n or (
        last is not None and n.args[0] in last.results
    )
    return plain and read and alone and isinstance(router, Value) and floats(router) and f.rows(norm.args[0])


@lowers("moe")
def moe(f: Lowering, n: Node) -> bool:
    """Both products, the gate between them, and the sum behind where it leads to the next block."""
    x, index, weights, up, down, up_bias, down_bias = [*n.args, None, None][:7]
    if not (f.rows(x) and f.rows(weights) and _choices(index) and _stack(f, up) and _stack(f, down)):
        return f.decline(n, ", ".join(map(str, n.operands[:5])))
    result, residual = sum_behind(f, n) or _sum(f, n) or (n.result, None)
    operands = x, index, weights, up, down, up_bias, down_bias, residual
    attrs = {"act": n.attrs["act"]}
    return f.launch("moe", n, *operands, results=[result], attrs=attrs, given=("work", "step"))


@lowers("expert_linear")
def expert_linear(f: Lowering, n: Node) -> bool:
    """A product for each choice."""
    x, index, weight, bias = [*n.args, None][:4]
    if not (isinstance(x, Value) and floats(x) and _choices(index) and _stack(f, weight)):
        return f.decline(n, ", ".join(map(str, n.operands[:3])))
    return f.launch("expert_linear", n, x, index, weight, bias, given=("work", "step"))


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
    """A program per row of a matrix."""
    x = n.args[0]
    if not isinstance(x, Value) or not f.rows(x) or n.attrs.get("dim", -1) not in (-1, 1):
        return f.decline(n, f"{n.operands[0]}")
    width = x.type.dims[-1]
    if n.op.name == "topk" and not (isinstance(width, int) and width <= WIDEST):
        return f.decline(n, f"rows of {x.type}")
    return f.launch(n.op.name, n, x, attrs=n.attrs)


def _sum(f: Lowering, n: Node) -> tuple[Value, Arg] | None:
    """The plain sum that alone reads what experts give, and what that is added to."""
    add = f.only_reader(n.result)
    if add is None or add.op.name != "add":
        return None
    other = add.args[1] if add.args[0] is n.result else add.args[0]
    if not isinstance(other, Value) or other is n.result or not f.there(other, n):
        return None
    if other.type != n.result.type or add.result.type != n.result.type:
        return None
    f.folded.add(id(add))
    return add.result, other


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
