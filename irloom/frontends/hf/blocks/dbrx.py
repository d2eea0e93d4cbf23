"""DBRX: experts stored as one matrix per projection, and a loop over those in use."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from irloom.frontends.hf.blocks.core import replaces
from irloom.frontends.hf.experts import weighted_sum
from irloom.frontends.hf.ops import expert_linear


@replaces("DbrxExperts")
def dbrx_experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Rows [B, T, H] through their experts; the rows of an expert lie together in each weight."""
    x = hidden_states.reshape(-1, self.hidden_size)
    dims = (self.num_experts, self.ffn_hidden_size, self.hidden_size)
    gate, up, down = (w.view(dims) for w in (self.mlp.w1, self.mlp.v1, self.mlp.w2))
    gated = self.mlp.activation_fn(expert_linear(x, top_k_index, gate, None))
    inner = gated * expert_linear(x, top_k_index, up, None)
    out = expert_linear(inner, top_k_index, down.transpose(1, 2), None)
    return weighted_sum(out, top_k_weights).view(hidden_states.shape)
