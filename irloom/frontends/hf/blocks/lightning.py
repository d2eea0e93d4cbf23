"""Lightning attention: linear attention with a fixed decay per head, unrolled over blocks by the library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from irloom.frontends.hf.blocks.core import replaces
from irloom.frontends.hf.recurrent import torch_op
from irloom.ir import ops


@replaces("MiniMaxLightningAttention")
def lightning_attention(self: Any, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """``hidden_states`` [B, T, H]; each token's keys count ``exp(-slope)`` less for the next one."""
    batch, tokens = hidden_states.shape[:2]
    qkv = self.act_fn(self.qkv_proj(hidden_states))
    qkv = qkv.view(batch, tokens, self.num_attention_heads, 3 * self.head_dim)
    decay = (-self.slope_rate).view(1, 1, -1, 1).expand(batch, tokens, -1, 1)
    out = torch_op(ops.gated_linear_attention)(*qkv.split(self.head_dim, dim=3), decay)
    out = self.norm(out.reshape(batch, tokens, -1))
    return self.out_proj(torch.sigmoid(self.output_gate(hidden_states)) * out), None
