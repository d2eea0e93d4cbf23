"""Doge's dynamic mask: each value says how much its token counts, and those that count most are seen."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from irloom.frontends.hf.blocks.core import library_of, replaces
from irloom.frontends.hf.interfaces import attention
from irloom.frontends.hf.sparse import sparse_index
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

    Where not all tokens are seen, each key head has its own choice.
    """
    library = library_of(self)
    split = (*hidden_states.shape[:-1], -1, self.head_dim)
    q = self.q_norm(self.q_proj(hidden_states).view(split)).transpose(1, 2)
    k = self.k_norm(self.k_proj(hidden_states).view(split)).transpose(1, 2)
    values = self.v_proj(hidden_states)
    counts = torch.exp(self.A * F.softplus(self.dt_proj(values)))
    q, k = library.apply_rotary_pos_emb(q, k, *position_embeddings)
    q = torch.cat([q, torch.full_like(q[..., :1], 1 / self.scaling)], dim=-1)
    k = torch.cat([k, counts.transpose(1, 2).unsqueeze(-1)], dim=-1)
    v = values.view(split).transpose(1, 2)
    if past_key_values is not None:
        k, v = past_key_values.update(k, v, self.layer_idx)
    index = _most(counts, self.keep_window_size) if _selects(self.config) else None
    found, _ = attention(self, q, k, v, attention_mask, scaling=self.scaling, indices=index, **kwargs)
    return self.o_proj(found.flatten(2)), None


def _most(counts: Tensor, keep: int) -> Tensor:
    """Positions [B, T, KV, keep] of each head's keys that count most; ``counts`` [B, T, KV] are positive."""
    one = torch.ones_like(counts[..., :1])
    best = [sparse_index(one.unsqueeze(-1), count, one, keep) for count in counts.split(1, 2)]
    return torch.stack(best, dim=2)


def _selects(config: Any) -> bool:
    """Whether a sequence may get so long that some of its tokens are not seen."""
    window = config.sliding_window
    if config.keep_window_size >= (window or config.max_position_embeddings):
        return False
    if window is not None:
        raise TraceError(f"the {config.keep_window_size} tokens that count most within a window of {window}")
    return True
