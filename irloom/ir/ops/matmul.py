"""Products of matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..op import op


@op("*b k, n k, n? -> *b n")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``. Splitting ``n`` is column-parallel; splitting ``k`` leaves a partial sum.

    A quantized weight counts as what it dequantizes to, rounded to the element of ``x``.
    """
    return F.linear(x, weight.to(x.dtype), bias)


@op("*b m k, *b k n -> *b m n")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` for every leading dim."""
    return torch.matmul(a, b)
