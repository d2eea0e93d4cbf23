"""Products in which every head has a matrix of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..elem import AnyElem, Elem
from ..op import Attrs, op
from ..signature import Operand
from .quantize import product_elem, rows_in


@op("t h k, h n k -> t h n")
def head_linear(x: Tensor, weight: Tensor, *, elem: Elem | None = None) -> Tensor:
    """``x[:, h] @ weight[h].T`` for every head: what goes into and out of latents in absorbed attention.

    Splitting ``h`` needs no communication. A quantized weight counts as what it dequantizes to, rounded to
    the element of ``x``; ``elem`` as in ``linear``.
    """
    x = rows_in(x, elem)
    return torch.einsum("thk,hnk->thn", x, weight.to(x.dtype))


@head_linear.dtype
def _(operands: Sequence[Operand], attrs: Attrs) -> AnyElem:
    return product_elem("head_linear", operands[0], attrs)
