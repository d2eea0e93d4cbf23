"""Point a library model's experts interface at irloom's op, and back.

The library keeps the weights of all experts of a block in one tensor and lets an implementation be chosen by
name, as for attention. Ours emits two products with the chosen experts; what is between them, the gate, and
the weighted sum after them are the model's own code, traced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from irloom.frontends.hf.interfaces import IMPLEMENTATION, implementation
from irloom.frontends.hf.ops import expert_linear


@contextlib.contextmanager
def irloom_experts(model: nn.Module) -> Iterator[None]:
    """Within, blocks of ``model`` that are on the experts interface compute with ``expert_linear``."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, experts)
    with implementation(model, "_experts_implementation_internal"):
        yield


def experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The library's experts interface: rows [T, H], the experts that each chooses [T, K] and their weights.

    An index past the last expert, which some routers give, chooses none (see ``expert_linear``).
    """
    first = self.gate_up_proj if self.has_gate else self.up_proj
    shifts = (None, None)
    if self.has_bias:
        shifts = self.gate_up_proj_bias if self.has_gate else self.up_proj_bias, self.down_proj_bias
    weights = (w.transpose(1, 2) if self.is_transposed else w for w in (first, self.down_proj))
    first, down = weights
    up = expert_linear(hidden_states, top_k_index, first, shifts[0])
    gated = self._apply_gate(up) if self.has_gate else self.act_fn(up)
    out = expert_linear(gated, top_k_index, down, shifts[1])
    if getattr(self, "has_post_expert_norm", False):  # 5.17 has none
        out = self.post_expert_norm(out)
    return weighted_sum(out, top_k_weights).to(hidden_states.dtype)


def weighted_sum(rows: Tensor, weights: Tensor) -> Tensor:
    """What the experts of a token give together: rows [T, K, N] by weights [T, K], summed over K."""
    return (rows * weights.unsqueeze(-1)).sum(1)
