"""The matrix memory of xLSTM, which the library unrolls over chunks and rests."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from irloom.frontends.hf.blocks.core import replaces
from irloom.frontends.hf.recurrent import torch_op
from irloom.ir import ops


@replaces("xLSTMBackend")
def matrix_memory(
    self: Any, query: Tensor, key: Tensor, value: Tensor, igate: Tensor, fgate: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """``query``, ``key`` [B, H, T, K], ``value`` [B, H, T, V], gates before their activation [B, H, T]."""
    query = query * query.shape[-1] ** -0.5
    rows = [x.transpose(1, 2) for x in (query, key, value, igate, F.logsigmoid(fgate))]
    return torch_op(ops.mlstm)(*rows, eps=self.config.eps).transpose(1, 2), None
