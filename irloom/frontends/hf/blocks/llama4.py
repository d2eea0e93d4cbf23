"""Llama 4: every expert runs on every token, and tokens that did not choose it come as zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from irloom.frontends.hf.blocks.core import replaces
from irloom.frontends.hf.ops import expert_linear


@replaces("Llama4TextMoe")
def llama4_moe(self: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen experts alone: scores multiply their inputs, and without biases zeros stay zeros."""
    x = hidden_states.reshape(-1, self.hidden_dim)
    logits = nn.Linear.forward(self.router, x)
    scores, index = torch.topk(logits, self.top_k, dim=1)
    scaled = x.unsqueeze(1) * torch.sigmoid(scores.float()).to(scores.dtype).unsqueeze(-1)
    first, down = (w.transpose(1, 2) for w in (self.experts.gate_up_proj, self.experts.down_proj))
    gate, up = expert_linear(scaled, index, first, None).chunk(2, dim=-1)
    routed = expert_linear(up * self.experts.act_fn(gate), index, down, None)
    return self.shared_expert(x) + routed.sum(1), logits
