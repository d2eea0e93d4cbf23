"""Lowering of reductions, and of what sorts or accumulates along a dim."""

from __future__ import annotations

from irloom.ir.elem import ELEMS

from .context import Context, Handler, lowers
from .layers.reduce import CumulativeSum, Reduce, Softmax, TopK
from .network import Tensor

F32, I32 = ELEMS["f32"], ELEMS["i32"]


def reduction(op: str) -> Handler:
    """A handler of a reduction; truths are compared as integers."""

    def handler(c: Context) -> Tensor:
        elem = c.result.plain
        x = c.cast(c["x"], I32 if elem.kind == "bool" else elem)
        return c.cast(c.add(Reduce(op, x, (c.attr("dim"),), c.attr("keep"))), elem)

    return handler


for _name, _op in {"sum": "sum", "mean": "avg", "amax": "max", "amin": "min"}.items():
    lowers(_name)(reduction(_op))


@lowers("softmax")
def softmax(c: Context) -> Tensor:
    rows = _rows(c)
    return c.reshape(c.add(Softmax(rows, -1 if rows is not c["x"] else c.attr("dim"))), c.result.dims)


@lowers("cumsum")
def cumsum(c: Context) -> Tensor:
    """Accumulated in f32, for a running sum has many summands."""
    elem = c.result.plain
    x = c.cast(c["x"], F32 if elem.kind == "float" else elem)
    return c.cast(c.add(CumulativeSum(x, c.attr("dim"))), elem)


@lowers("topk")
def topk(c: Context) -> tuple[Tensor, ...]:
    k = c.attr("k")
    if not isinstance(k, int):
        raise c.refuse(f"k is {k}: known when the network is built")
    return tuple(c.reshape(t, (*c["x"].dims[:-1], k)) for t in c.all(TopK("max", _rows(c), k)))


@lowers("argmax")
def argmax(c: Context) -> Tensor:
    _, at = c.all(TopK("max", _rows(c), 1))
    return c.reshape(at, c.result.dims)


def _rows(c: Context) -> Tensor:
    """Operand ``x`` with two dims at least, as sorting and softmax ask for."""
    return c.lift(c["x"], 2) if len(c["x"].dims) == 1 else c["x"]
