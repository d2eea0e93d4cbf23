"""Doge's dynamic mask: each value says how much its token counts, and those that count most are seen."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from irloom.frontends.hf.blocks.core import replaces
from irloom.frontends.hf.interfaces import attention
from irloom.ir.errors import TraceError


@replaces("DogeAttention")
def doge_attention(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Rows [B, T, H]. What a key adds to its scores is one more feature of it, which queries leave as it is.

    Where not all tokens are seen, each key head has its own choice, and an attention of its own.
    """
    library = sys.modules[type(self).__module__]
    split = (*hidden_states.shape[:-1], -1, self.head_dim)
    q = self.q_norm(self.q_proj(hidden_states).view(split)).transpose(1, 2)
    k = self.k_norm(self.k_proj(hidden_states).view(split)).transpose(1, 2)
    values = self.v_proj(hidden_states)
    counts = torch.exp(self.A * F.softplus(self.dt_proj(values)))
    q, k = library.apply_rotary_pos_emb(q, k, *position_embeddings)
    q = torch.cat([q, torch.full_like(q[..., :1], 1 / self.scaling)], dim=-1)
    k = torch.cat([k, counts.transpose(1, 2).unsqueeze(-1)], dim=-1)
    v = values.view(split).transpose(1, 2)

    def attend(q: Tensor, k: Tensor, v: Tensor, index: Tensor | None) -> Tensor:
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        return attention(self, q, k, v, attention_mask, scaling=self.scaling, indices=index, **kwargs)[0]

    if not _selects(self.config):
        return self.o_proj(attend(q, k, v, None).flatten(2)), None
    each = zip(q.chunk(k.shape[1], 1), k.split(1, 1), v.split(1, 1), counts.split(1, 2), strict=True)
    found = [attend(q, k, v, _most(count, self.keep_window_size)) for q, k, v, count in each]
    return self.o_proj(torch.cat(found, dim=2).flatten(2)), None


def _most(counts: Tensor, keep: int) -> Tensor:
    """The positions [B, T, keep] of one head's keys that count most; ``counts`` [B, T, 1] are positive."""
    one = torch.ones_like(counts)
    return torch.ops.irloom.sparse_index(one.unsqueeze(-1), counts, one, keep)


def _selects(config: Any) -> bool:
    """Whether a sequence may get so long that some of its tokens are not seen."""
    window = config.sliding_window
    if config.keep_window_size >= (window or config.max_position_embeddings):
        return False
    if window is not None:
        raise TraceError(f"the {config.keep_window_size} tokens that count most within a window of {window}")
    return True
