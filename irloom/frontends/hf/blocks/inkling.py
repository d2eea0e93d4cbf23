"""Inkling: each query has a bias per distance, and each token weights of its own for those before it."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from irloom.frontends.hf.blocks.core import replaces
from irloom.frontends.hf.recurrent import torch_op
from irloom.ir import ops


@replaces("InklingRelativeLogits", "Inkling2RelativeLogits")
def relative_logits(self: Any, relative_states: Tensor, *_: Any) -> Tensor:
    """``relative_states`` [B, T, H, R] to a bias [B, H, T, D] for each distance below D, not for each key."""
    return (relative_states @ self.proj).transpose(1, 2)


@replaces("Inkling2DynamicShortConvolution")
def dynamic_convolution(
    self: Any, hidden_states: Tensor, dynamic_input: Tensor, *_: Any, **__: Any
) -> Tensor:
    """``hidden_states`` [B, T, C]: the last tokens, with weights of the channel plus those of the token."""
    taps, heads = self.conv_kernel_size, self.num_heads
    own = self.weight_proj(dynamic_input).float().unflatten(-1, (heads, taps))
    past, static = hidden_states.float(), self.static_weight.float()
    total = past
    for lag in range(taps):
        past = torch_op(ops.token_shift)(past) if lag else past
        weight = own[..., lag].unsqueeze(-1) + static[lag].view(heads, -1)
        total = total + past * weight.flatten(2)
    return (total / math.sqrt(2 * taps + 1)).to(hidden_states.dtype)
