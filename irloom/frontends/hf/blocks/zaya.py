"""ZAYA's compressed convolutional attention: queries and keys mixed over tokens, values half a token late."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from irloom.frontends.hf.blocks.core import replaces
from irloom.frontends.hf.recurrent import torch_op
from irloom.ir import ops


@replaces("ZayaCCAProjection")
def projection(self: Any, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``hidden_states`` [B, T, H] to queries, keys and values [B, T, heads, D].

    What lies before a sequence is 0, and has gone through the first convolution and the projection of late
    values: what comes out of these for 0 is their bias.
    """
    batch, tokens = hidden_states.shape[:2]
    groups, size = self.num_key_value_groups, self.head_dim
    q, k = self.q_proj(hidden_states), self.k_proj(hidden_states)
    heads = k.view(batch, tokens, -1, 1, size).expand(-1, -1, -1, groups, -1)
    own_q = (q.view(batch, tokens, -1, size) + heads.reshape(batch, tokens, -1, size)) * 0.5
    own_k = own_q.view(batch, tokens, -1, groups, size).mean(dim=-2)
    first = self.conv_qk_depthwise
    mixed = torch_op(ops.causal_conv)(torch.cat([q, k], dim=-1), first.weight.squeeze(1), None)
    mixed = _grouped_conv(mixed, self.conv_qk_grouped, first.bias)
    queries, keys = mixed.split([q.shape[-1], k.shape[-1]], dim=-1)
    late = self.v_proj_delayed
    shifted = torch_op(ops.token_shift)(nn.functional.linear(hidden_states, late.weight))
    shifted = shifted if late.bias is None else shifted + late.bias
    values = torch.cat([self.v_proj_current(hidden_states), shifted], dim=-1)
    return (
        queries.view(batch, tokens, -1, size) + own_q,
        keys.view(batch, tokens, -1, size) + own_k,
        values.view(batch, tokens, -1, size),
    )


def _grouped_conv(x: Tensor, conv: nn.Conv1d, before: Tensor) -> Tensor:
    """A convolution of each group of channels of ``x`` [B, T, C] plus ``before``, which goes on before it."""
    out, width, taps = conv.weight.shape
    groups = x.shape[-1] // width
    weight = conv.weight.view(groups, out // groups, width, taps)
    total = x.new_zeros(out) if conv.bias is None else conv.bias
    for tap in reversed(range(taps)):
        rows = (x + before).view(*x.shape[:2], groups, width).transpose(1, 2)
        product = torch.matmul(rows, weight[..., tap].transpose(1, 2)[None])
        total = total + product.transpose(1, 2).reshape(*x.shape[:2], out)
        x = torch_op(ops.token_shift)(x) if tap else x
    return total
