"""Lowering of quantized weights."""

from __future__ import annotations

from irloom.ir.elem import Elem
from irloom.ir.graph import Param

from .context import Context
from .network import Tensor


def dequantized(c: Context, p: Param, elem: Elem) -> Tensor:
    """The weight in ``elem``, from its values and scales."""
    raise c.refuse(f"its weight is {p.type}, quantized")
