"""Lowering of normalizations. TensorRT has layer norm as a layer; RMS norm is composed, and fused by it."""

from __future__ import annotations

from irloom.ir.elem import ELEMS

from .context import Context, lowers
from .layers.normalization import Normalization
from .layers.reduce import Reduce
from .lower_shape import expanded
from .network import Tensor

F32 = ELEMS["f32"]


def unit_rows(c: Context, x: Tensor, op: str, eps: float) -> Tensor:
    """``x`` over the root of the sum or mean (``op``) of its squares along the last dim, plus ``eps``."""
    total = c.add(Reduce(op, c.binary("prod", x, x), (-1,)))
    root = c.unary("sqrt", c.binary("sum", total, eps))
    return c.binary("prod", x, c.unary("recip", root))


def grouped(c: Context, x: Tensor, groups: int) -> Tensor:
    """Rows cut into equal parts, if into several."""
    last = x.dims[-1]
    assert isinstance(last, int)
    return x if groups == 1 else c.reshape(x, (*x.dims[:-1], groups, last // groups))


@lowers("rms_norm")
def rms_norm(c: Context) -> Tensor:
    """In f32, rounded once."""
    x, groups = c["x"], c.attr("groups")
    h = c.reshape(unit_rows(c, grouped(c, c.cast(x, F32), groups), "avg", c.attr("eps")), x.dims)
    if c.has("weight"):
        h = c.binary("prod", h, c.cast(c["weight"], F32))
    return c.cast(h, x.elem)


@lowers("layer_norm")
def layer_norm(c: Context) -> Tensor:
    """The layer itself computes in f32; of groups its result is in f32, too, until it is scaled."""
    x, eps, groups = c["x"], c.attr("eps"), c.attr("groups")
    given = [t for t in (c.get("weight"), c.get("bias")) if t is not None]
    elem = x.elem if groups == 1 and all(t.elem == x.elem for t in given) else F32
    h, rank = grouped(c, c.cast(x, elem), groups), len(x.dims)
    if groups == 1:
        dims = (*(1,) * (rank - 1), x.dims[-1] if given else 1)
        scale, bias = (
            expanded(c, c.number(value, elem, rank), dims) if t is None else c.lift(c.cast(t, elem), rank)
            for t, value in ((c.get("weight"), 1.0), (c.get("bias"), 0.0))
        )
        return c.cast(c.add(Normalization(h, scale, bias, (-1,), eps)), x.elem)
    one, zero = (c.number(value, elem, rank + 1) for value in (1.0, 0.0))
    h = c.reshape(c.add(Normalization(h, one, zero, (-1,), eps)), x.dims)
    for op, name in (("prod", "weight"), ("sum", "bias")):
        h = c.binary(op, h, c.cast(c[name], elem)) if c.has(name) else h
    return c.cast(h, x.elem)


@lowers("l2_norm")
def l2_norm(c: Context) -> Tensor:
    x = c["x"]
    return c.cast(unit_rows(c, c.cast(x, F32), "sum", c.attr("eps")), x.elem)
