"""Griffin's recurrent block: a convolution and an RG-LRU, whose states the library keeps in its modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from irloom.frontends.hf.blocks.core import replaces
from irloom.frontends.hf.recurrent import torch_op
from irloom.ir import ops


@replaces("RecurrentGemmaRecurrentBlock")
def recurrent_block(
    self: Any, input_states: Tensor, position_ids: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """``input_states`` [B, T, H]."""
    conv = self.conv_1d
    mixed = torch_op(ops.causal_conv)(self.linear_x(input_states), conv.weight.squeeze(1), conv.bias)
    gate = self.act_fn(self.linear_y(input_states))
    return self.linear_out(self.rg_lru(mixed, position_ids) * gate), None


@replaces("RecurrentGemmaRglru", method="_rnn_scan")
def rnn_scan(
    self: Any, hidden_states: Tensor, recurrent_gate: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """``hidden_states``, ``recurrent_gate`` [B, T, W]; a sequence starts from zeros without a reset."""
    return torch_op(ops.linear_scan)(hidden_states, recurrent_gate), None
