"""LongCat: a loop over the experts in use, some of which hand their input on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from irloom.frontends.hf.blocks.core import replaces
from irloom.frontends.hf.experts import weighted_sum
from irloom.frontends.hf.ops import expert_linear


@replaces("LongcatFlashExperts")
def longcat_experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Rows [T, H] through their experts; one past the routed experts is the identity.

    Weights are there for identities, too, and are never read.
    """
    same = (top_k_index >= self.num_routed_experts).unsqueeze(-1)
    out = hidden_states.unsqueeze(1)
    if self.gate_up_proj is not None:
        first = self.gate_up_proj[: self.num_routed_experts]
        gate, up = expert_linear(hidden_states, top_k_index, first, None).chunk(2, dim=-1)
        routed = expert_linear(self.act_fn(gate) * up, top_k_index, self.down_proj, None)
        out = torch.where(same, out, routed)
    return weighted_sum(out, top_k_weights).to(hidden_states.dtype)
