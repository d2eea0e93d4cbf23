"""Lowering of routers, together with the product and the norm that they alone read."""

from __future__ import annotations

from irloom.ir.graph import Arg, Node, Value

from .kernels.form import Form
from .lower import Lowering, floats, lowers
from .program import Launch


@lowers("route")
def route(f: Lowering, n: Node) -> bool:
    """A program per token; with the router's product and the norm in front, where they are just that.

    Kernels compute in f32 whatever they read and write: casts between them are part of it.
    """
    logits, bias = [*n.args, None][:2]
    if not f.rows(logits):
        return f.decline(n, f"{n.operands[0]}")
    weights, index = n.results
    logits, results, attrs = _uncast(f, logits), [_cast(f, weights), index], n.attrs
    product = _last(f, "product", logits)
    norm = product and _norm(f, product)
    if norm is None or product is None:
        return f.launch("route", n, logits, bias, results=results, attrs=attrs, given=("step",))
    del f.steps[f.steps.index(norm) :]
    (x, weight), (_, router, shift, *_) = norm.args, product.args
    results, attrs = [*norm.results, *results], {**attrs, "eps": norm.attrs["eps"]}
    operands, given = (x, weight, router, shift, bias), ("work", "step")
    return f.launch("norm_route", n, *operands, results=results, attrs=attrs, given=given)


def _last(f: Lowering, kernel: str, made: Arg) -> Launch | None:
    """The launch just in front, where it is of ``kernel`` and makes ``made`` for one node alone."""
    match f.steps[-1:]:
        case [Launch(kernel=k, results=(result,)) as launch] if k == kernel and result is made:
            return launch if f.only_reader(result) else None
    return None


def _uncast(f: Lowering, x: Arg) -> Arg:
    """What ``x`` is a wider copy of, made by the launch just in front, which then goes."""
    launch = _last(f, "elementwise", x)
    if launch is None or not isinstance(x, Value) or x.type.plain.name != "f32":
        return x
    cast, given = launch.node, launch.node.args[0]
    if cast.op.name != "cast" or cast.result is not x or not f.rows(given):
        return x
    f.steps.pop()
    return given


def _cast(f: Lowering, weights: Value) -> Value:
    """What ``weights`` are cast to, where nothing else reads them."""
    cast = f.only_reader(weights)
    if cast is None or cast.op.name != "cast" or not floats(cast.result):
        return weights
    f.folded.add(id(cast))
    return cast.result


def _norm(f: Lowering, product: Launch) -> Launch | None:
    """The norm just in front of a router's ``product``, as the one kernel of all three has both."""
    x, router, _, residual, weight = product.args
    if product.attrs["form"] != Form() or residual is not None or weight is not None:
        return None
    if not isinstance(router, Value) or not floats(router):
        return None
    match f.steps[-3:-1]:
        case [*_, Launch(kernel="rms_norm") as norm]:
            normed = x
        case [Launch(kernel="rms_norm") as norm, Launch(kernel="elementwise", node=cast)]:
            if cast.op.name != "cast" or cast.result is not x or not f.only_reader(cast.result):
                return None
            normed = cast.args[0]
        case _:
            return None
    plain = set(norm.attrs) == {"eps"} and len(norm.args) == 2 and f.rows(norm.args[0])
    return norm if plain and norm.results == (normed,) else None
