"""Products in which every head has a matrix of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from ..op import op


@op("t h k, h n k -> t h n")
def head_linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x[:, h] @ weight[h].T`` for every head: what goes into and out of latents in absorbed attention.

    Splitting ``h`` needs no communication. A quantized weight counts as what it dequantizes to, rounded to
    the element of ``x``.
    """
    return torch.einsum("thk,hnk->thn", x, weight.to(x.dtype))
