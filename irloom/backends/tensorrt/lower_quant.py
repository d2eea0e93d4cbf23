"""Lowering of quantized weights: values and scales are weights of a network, and a layer multiplies them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.graph import Param

from .context import Context
from .forms import form
from .layers.quantize import Dequantize
from .network import Tensor

if TYPE_CHECKING:
    import torch

    from irloom.ir.quantized import QuantizedTensor

BASES = ("i8", "i4", "f8e4m3")


def dequantized(c: Context, p: Param, elem: Elem) -> Tensor:
    """The weight in ``elem``: from its values and scales while the engine runs, where TensorRT has such a
    form, else computed once, when weights are read.
    """
    quant = p.type.elem
    assert isinstance(quant, Quant)
    why = no_layer(quant)
    if why:
        c.note(f"`{p.name}` is dequantized when it is read: {why}")
        return c.weight(p, f"in_{elem}", elem)
    return c.once(("dequantized", p, elem), lambda: _multiplied(c, p, quant, elem))


def no_layer(quant: Quant) -> str:
    """Why no layer dequantizes such a scheme; empty where one does."""
    if quant.zero is not None:
        return f"{quant} has zero points, and TensorRT's scales are symmetric"
    if quant.base.name not in BASES:
        return f"there is no form for weights of {quant.base}"
    if quant.rows != 1:
        return f"of {quant} several rows share a scale"
    return ""


def _multiplied(c: Context, p: Param, quant: Quant, elem: Elem) -> Tensor:
    """Scales are in ``elem``, as the layer wants them: one a row of a matrix by its axis, those of groups and
    of stacks by blocks.
    """
    dims = [d for d in quant.scale_dims(p.type.dims) if isinstance(d, int)]
    values = c.weight(p, "values", quant.base)
    if len(dims) == 2 and dims[-1] == 1:
        return c.add(Dequantize(values, c.weight(p, f"row_scales_{elem}", elem, dims[:1]), elem, axis=0))
    return c.add(Dequantize(values, c.weight(p, f"scales_{elem}", elem, dims), elem))


def values(x: torch.Tensor | QuantizedTensor) -> torch.Tensor:
    """Entries as they are stored; 0 where their scale is 0, which ``scales`` does not keep."""
    q = _quantized(x)
    empty = (q.scales == 0).repeat_interleave(q.dims[-1] // q.scales.shape[-1], -1)
    return q.values.where(~empty, q.values.new_zeros(()))


def scales(x: torch.Tensor | QuantizedTensor, elem: Elem) -> torch.Tensor:
    """Scales in ``elem``, none 0: a group of zeros has 1, and one too small for ``elem`` its least number."""
    import torch

    given = _quantized(x).scales
    least = torch.finfo(elem.torch).smallest_normal
    made = given.to(elem.torch)
    made = made.where(made != 0, given.float().sign().to(elem.torch) * least)
    return made.where(given != 0, made.new_ones(()))


def _quantized(x: torch.Tensor | QuantizedTensor) -> QuantizedTensor:
    from irloom.ir.quantized import QuantizedTensor

    assert isinstance(x, QuantizedTensor)
    return x


def _register(elem: Elem) -> None:
    """The forms that depend on the element of the product."""
    form(f"scales_{elem}")(lambda x: scales(x, elem))
    form(f"row_scales_{elem}")(lambda x: scales(x, elem).flatten())
    form(f"in_{elem}")(lambda x: _quantized(x).dequantize(elem))


form("values")(values)
for _name in ("f32", "f16", "bf16"):
    _register(ELEMS[_name])
