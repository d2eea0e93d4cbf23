"""How ops that move, reduce, sort or make entries become ONNX operators."""

from __future__ import annotations

from typing import Any

from irloom.ir.dims import Dim
from irloom.ir.elem import ELEMS
from irloom.ir.graph import Node, Value
from irloom.ir.types import Type

from .elementwise import result_elem
from .graph import Graph
from .lower import Lowering, lowers

I32, I64 = ELEMS["i32"], ELEMS["i64"]
END = 2**63 - 1
"""What ``Slice`` takes for "to the end"."""


def _type(n: Node, at: int = 0) -> Type:
    a = n.args[at]
    assert isinstance(a, Value)
    return a.type


def _dims(n: Node, name: str = "dims") -> tuple[Dim, ...]:
    given: Any = n.attrs[name]
    return given


def _dim(n: Node) -> int:
    dim = n.attrs["dim"]
    assert isinstance(dim, int)
    return dim % _type(n).rank


@lowers("reshape")
def reshape(low: Lowering, n: Node, x: str) -> str:
    """``Reshape``; one dim that is not known before follows from the others."""
    return low.g.reshape(x, _dims(n))


@lowers("permute")
def permute(low: Lowering, n: Node, x: str) -> str:
    """``Transpose``."""
    return low.g("Transpose", x, perm=list(_dims(n)))


@lowers("expand")
def expand(low: Lowering, n: Node, x: str) -> str:
    """``Expand``, which keeps a dim where 1 is asked for."""
    dims, old = _dims(n), _type(n).dims
    lead = len(dims) - len(old)
    wanted = [1 if i >= lead and old[i - lead] == d else d for i, d in enumerate(dims)]
    return low.g("Expand", x, low.g.shape(wanted))


@lowers("slice")
def slice_(low: Lowering, n: Node, x: str) -> str:
    """``Slice`` of one dim."""
    g, stop = low.g, n.attrs["stop"]
    start, step = n.attrs["start"], n.attrs["step"]
    assert isinstance(start, int) and isinstance(step, int)
    end = g.ints(END) if stop is None else g.size(stop)  # type: ignore[arg-type]
    return g("Slice", x, g.ints(start), end, g.ints(_dim(n)), g.ints(step))


@lowers("concat")
def concat(low: Lowering, n: Node, *xs: str) -> str:
    """``Concat``."""
    return xs[0] if len(xs) == 1 else low.g("Concat", *xs, axis=_dim(n))


@lowers("split")
def split(low: Lowering, n: Node, x: str) -> tuple[str, ...]:
    """``Split``."""
    sizes = _dims(n, "sizes")
    if len(sizes) == 1:
        return (x,)
    return low.g.several("Split", x, low.g.shape(sizes), outputs=len(sizes), axis=_dim(n))


@lowers("pad")
def pad(low: Lowering, n: Node, x: str) -> str:
    """``Pad`` of one dim."""
    g, value = low.g, n.attrs["value"]
    assert isinstance(value, (int, float))
    ends = g.shape((n.attrs["before"], n.attrs["after"]))  # type: ignore[arg-type]
    elem = result_elem(n)
    filler = g.constant(float(value) if elem.kind == "float" else int(value), elem)
    return g("Pad", x, ends, filler, g.ints(_dim(n)))


@lowers("arange")
def arange(low: Lowering, n: Node) -> str:
    """``Range`` of integers, in the element asked for."""
    g = low.g
    start, step, stop = n.attrs["start"], n.attrs["step"], n.attrs["stop"]
    assert isinstance(start, int) and isinstance(step, int)
    end = g.constant(stop, I64) if isinstance(stop, int) else g.scalar(g.size(stop))  # type: ignore[arg-type]
    return g.cast(g("Range", g.constant(start, I64), end, g.constant(step, I64)), I64, result_elem(n))


@lowers("full")
def full(low: Lowering, n: Node) -> str:
    """A constant, expanded."""
    value, elem = n.attrs["value"], result_elem(n)
    assert isinstance(value, (int, float))
    number = bool(value) if elem.kind == "bool" else float(value) if elem.kind == "float" else int(value)
    return low.g("Expand", low.g.constant(number, elem), low.g.shape(_dims(n)))


@lowers("sum", "mean", "amax", "amin")
def reduced(low: Lowering, n: Node, x: str) -> str:
    """``ReduceSum`` and its kin; integers and truths are counted in i64."""
    g = low.g
    op = {"sum": "ReduceSum", "mean": "ReduceMean", "amax": "ReduceMax", "amin": "ReduceMin"}[n.op.name]
    return g(
        op, g.cast(x, _type(n).plain, result_elem(n)), g.ints(_dim(n)), keepdims=int(bool(n.attrs["keep"]))
    )


@lowers("softmax")
def softmax(low: Lowering, n: Node, x: str) -> str:
    """``Softmax``."""
    return low.g("Softmax", x, axis=-1)


@lowers("cumsum")
def cumsum(low: Lowering, n: Node, x: str) -> str:
    """``CumSum``; integers and truths are counted in i64."""
    g = low.g
    return g("CumSum", g.cast(x, _type(n).plain, result_elem(n)), g.constant(_type(n).rank - 1, I64))


@lowers("argmax")
def argmax(low: Lowering, n: Node, x: str) -> str:
    """``ArgMax``, in i32."""
    return low.g.cast(low.g("ArgMax", x, axis=-1, keepdims=0), I64, I32)


@lowers("topk")
def topk(low: Lowering, n: Node, x: str) -> tuple[str, str]:
    """``TopK``, with indices in i32."""
    k = n.attrs["k"]
    assert isinstance(k, int)
    values, index = largest(low.g, x, k)
    return values, low.g.cast(index, I64, I32)


def largest(g: Graph, x: str, k: int) -> tuple[str, str]:
    """The ``k`` largest entries along the last dim and where they are, i64."""
    values, index = g.several("TopK", x, g.ints(k), outputs=2, axis=-1)
    return values, index
