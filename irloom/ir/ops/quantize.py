"""Activations in few bits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..elem import AnyElem, Elem, Quant
from ..errors import IRError
from ..op import Attrs, op
from ..quantized import round_trip
from ..signature import Operand
from ..types import Type


@op("*b k -> *b k")
def quantize(x: Tensor, *, to: Quant) -> Tensor:
    """``x`` rounded to nearest in a quantized element of the header, with scales that this step finds.

    Products read the result: their rows are those entries, times the scales at the end. By reference it is
    what it dequantizes to, in the element of ``x``, as a quantized weight is. One scale for each token
    (``group=0``) or for some entries of it (``group=128``) leaves tokens apart; with ``rows=0`` a token's
    entries depend on all that are in the step. Splitting ``k`` gives every rank scales of its own.
    """
    return round_trip(x, to)


@quantize.dtype
def _(operands: Sequence[Operand], attrs: Attrs) -> AnyElem:
    to = attrs["to"]
    assert isinstance(to, Quant)
    return to


@quantize.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    x, to = operands[0], attrs["to"]
    if not isinstance(to, Quant):
        raise IRError(f"quantize: to={to} is no quantized element", hint="one that the header declares")
    if not isinstance(x, Type) or not x.rank:
        return  # the signature says what is wrong
    if not isinstance(x.elem, Elem) or x.elem.kind != "float":
        raise IRError(f"quantize: operand `x` is {x}", hint="floats are rounded, and once")
    to.scale_dims(x.dims)


def product_elem(op: str, x: Operand, attrs: Attrs) -> Elem:
    """The element of what a product makes of ``x``: its own, or ``elem`` where it is quantized.

    ``IRError`` where ``elem`` is missing, or given for plain rows.
    """
    assert isinstance(x, Type)
    elem = attrs["elem"]
    if isinstance(x.elem, Quant):
        if not isinstance(elem, Elem) or elem.kind != "float":
            raise IRError(f"{op}: operand `x` is {x}, quantized", hint="say what it gives: elem=bf16")
        return elem
    if elem is not None:
        raise IRError(
            f"{op}: elem={elem}, but operand `x` is {x}", hint="elem is for rows that are quantized"
        )
    return x.plain


def rows_in(x: Tensor, elem: Elem | None) -> Tensor:
    """Rows in the element that their product computes in."""
    return x if elem is None else x.to(elem.torch)
