"""Aria of transformers 5.17: tokens sorted by expert, and a loop. Later ones are on the experts interface."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from irloom.frontends.hf.blocks.core import replaces
from irloom.frontends.hf.experts import weighted_sum
from irloom.frontends.hf.ops import expert_linear


def _sorts(experts: nn.Module) -> bool:
    return hasattr(experts, "route_tokens_to_experts")


@replaces("AriaExperts", where=_sorts)
def aria_experts(self: Any, hidden_states: Tensor, router_logits: Tensor) -> Tensor:
    """Rows [T, H] through their experts, whose weights are [E, in, out]."""
    index, weights = self.route_tokens_to_experts(router_logits)
    first, down = (part.weight.transpose(1, 2) for part in (self.fc1, self.fc2))
    gate, up = expert_linear(hidden_states, index, first, None).chunk(2, dim=-1)
    return weighted_sum(expert_linear(nn.functional.silu(gate) * up, index, down, None), weights)
