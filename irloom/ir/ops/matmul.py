"""Products of matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..elem import AnyElem, Elem
from ..op import Attrs, op
from ..signature import Operand
from .quantize import product_elem, rows_in


@op("*b k, n k, n? -> *b n")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, elem: Elem | None = None) -> Tensor:
    """``x @ weight.T + bias``. Splitting ``n`` is column-parallel; splitting ``k`` leaves a partial sum.

    A quantized weight counts as what it dequantizes to, rounded to the element of ``x``. Where ``x`` is
    quantized, too (see ``quantize``), ``elem`` says what element its product is computed and given in.
    """
    x = rows_in(x, elem)
    return F.linear(x, weight.to(x.dtype), bias)


@linear.dtype
def _(operands: Sequence[Operand], attrs: Attrs) -> AnyElem:
    return product_elem("linear", operands[0], attrs)


@op("*b m k, *b k n -> *b m n")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` for every leading dim."""
    return torch.matmul(a, b)
