"""JetMoE: experts that sort tokens by the expert they chose, in the MLP and around attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from irloom.frontends.hf.blocks.core import library_of, replaces
from irloom.frontends.hf.experts import weighted_sum
from irloom.frontends.hf.interfaces import attention
from irloom.frontends.hf.ops import expert_linear

Chosen = tuple[Tensor, Tensor]
"""Experts [T, K] and weights [T, K]."""


def _route(router: Any, x: Tensor) -> tuple[Chosen, Tensor]:
    logits = router.layer(x).float()
    top, index = logits.topk(router.top_k, dim=1)
    return (index, torch.softmax(top, dim=1).type_as(x)), logits


@replaces("JetMoeMoE")
def jetmoe_mlp(self: Any, layer_input: Tensor) -> Tensor:
    """Rows [B, T, H] through a gated MLP of their experts."""
    x = layer_input.reshape(-1, self.input_size)
    (index, weights), _ = _route(self.router, x)
    gate, up = expert_linear(x, index, self.input_linear.weight, None).chunk(2, dim=-1)
    out = expert_linear(self.activation(gate) * up, index, self.output_linear.weight, None)
    return weighted_sum(out, weights).view(layer_input.shape) + self.bias


@replaces("JetMoeAttention")
def jetmoe_attention(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Attention whose queries and outputs go through experts: rows [B, T, H].

    The library repeats the cached keys for each of a token's K experts. Here the queries of one key head are
    brought together, as in any attention with grouped queries, and the cache is read as it is.
    """
    library = library_of(self)
    x = hidden_states.reshape(-1, hidden_states.shape[-1])
    (index, weights), logits = _route(self.experts.router, x)
    k, heads, dim = self.top_k, self.num_key_value_heads, self.head_dim
    asked = expert_linear(x, index, self.experts.input_linear.weight, None)
    queries = asked.view(1, -1, k, heads, dim).transpose(2, 3).reshape(1, -1, heads * k, dim)
    keys, values = (y.view(1, -1, heads, dim) for y in self.kv_proj(hidden_states).chunk(2, dim=-1))
    q, key, value = (y.transpose(1, 2) for y in (queries, keys, values))
    q, key = library.apply_rotary_pos_emb(q, key, *(position_embeddings or ()))
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, self.layer_idx)
    found, _ = attention(self, q, key, value, attention_mask, scaling=self.scaling, **kwargs)
    rows = found.view(-1, heads, k, dim).transpose(1, 2).reshape(-1, k, heads * dim)
    out = expert_linear(rows, index, self.experts.output_linear.weight, None)
    return weighted_sum(out, weights).view(hidden_states.shape) + self.experts.bias, None, logits
