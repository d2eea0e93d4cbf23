"""Lowering of quantized weights: values and scales are weights of a network, and a layer multiplies them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irloom.ir.elem import Elem, Quant
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
        return f"TensorRT has no weights of {quant.base}"
    if quant.scale.name not in ("f32", "f16", "bf16"):
        return f"TensorRT has no scales of {quant.scale}"
    return ""


def _multiplied(c: Context, p: Param, quant: Quant, elem: Elem) -> Tensor:
    """One scale a row of a matrix goes by its axis, scales of groups, and those of stacks, by blocks."""
    dims = [d for d in quant.scale_dims(p.type.dims) if isinstance(d, int)]
    values = c.weight(p, "values", quant.base)
    if len(dims) == 2 and dims[-1] == 1:
        scales, axis = c.weight(p, "row_scales", quant.scale, dims[:1]), 0
    else:
        scales, axis = c.weight(p, "scales", quant.scale, dims), None
    return c.add(Dequantize(values, scales, elem, axis=axis))


@form("values")
def _values(x: torch.Tensor | QuantizedTensor) -> torch.Tensor:
    return _quantized(x).values


@form("scales")
def _scales(x: torch.Tensor | QuantizedTensor) -> torch.Tensor:
    """Scales, 1 where a group is all zeros: TensorRT's are above 0."""
    scales = _quantized(x).scales
    return scales.where(scales != 0, scales.new_ones(()))


@form("row_scales")
def _row_scales(x: torch.Tensor | QuantizedTensor) -> torch.Tensor:
    return _scales(x).flatten()


def _quantized(x: torch.Tensor | QuantizedTensor) -> QuantizedTensor:
    from irloom.ir.quantized import QuantizedTensor

    assert isinstance(x, QuantizedTensor)
    return x


def _in(elem: str) -> None:
    from irloom.ir.elem import ELEMS

    @form(f"in_{elem}")
    def _(x: torch.Tensor | QuantizedTensor) -> torch.Tensor:
        return _quantized(x).dequantize(ELEMS[elem])


for _elem in ("f32", "f16", "bf16"):
    _in(_elem)
