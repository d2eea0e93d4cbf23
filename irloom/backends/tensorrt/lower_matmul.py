"""Lowering of products."""

from __future__ import annotations

from irloom.ir.dims import product
from irloom.ir.elem import Elem, Quant
from irloom.ir.graph import Param

from .context import Context, lowers
from .layers.matmul import MatrixMultiply
from .lower_activation import act, softcap
from .lower_elementwise import by_number
from .lower_quant import dequantized
from .network import Tensor


def matrix(c: Context, name: str, elem: Elem) -> Tensor:
    """A weight that goes into a product, in the element of what it is multiplied with."""
    p = c.arg(name)
    if isinstance(p, Param) and isinstance(p.type.elem, Quant):
        return dequantized(c, p, elem)
    return c.cast(c[name], elem)


def projected(c: Context) -> Tensor:
    """``x @ weight.T + bias``, as one product of matrices."""
    x = c["x"]
    weight = matrix(c, "weight", x.elem)
    (*batch, k), n = x.dims, weight.dims[0]
    y = c.add(MatrixMultiply(c.reshape(x, (product(batch), k)), weight, transpose_b=True))
    bias = c.get("bias")
    y = y if bias is None else c.binary("sum", y, c.cast(bias, y.elem))
    return c.reshape(y, (*batch, n))


@lowers("linear")
def linear(c: Context) -> Tensor:
    return projected(c)


@lowers("linear_act")
def linear_act(c: Context) -> Tensor:
    y = projected(c)
    if c.attr("act") is not None:
        y = act(c, y, c.attr("act"))
    if c.attr("scale") != 1.0:
        y = by_number(c, "prod", y, c.attr("scale"))
    if c.attr("softcap") is not None:
        y = softcap(c, y, c.attr("softcap"))
    return c.binary("sum", c["residual"], y) if c.has("residual") else y


@lowers("matmul")
def matmul(c: Context) -> Tensor:
    return c.add(MatrixMultiply(c["a"], c["b"]))


@lowers("head_linear")
def head_linear(c: Context) -> Tensor:
    """Heads go first, so that each is one product of a batch."""
    x = c["x"]
    weight = matrix(c, "weight", x.elem)
    y = c.add(MatrixMultiply(c.permute(x, (1, 0, 2)), weight, transpose_b=True))
    return c.permute(y, (1, 0, 2))
