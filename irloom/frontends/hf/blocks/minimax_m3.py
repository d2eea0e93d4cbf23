"""MiniMax-M3 attends to blocks of tokens that each KV head picks for itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from irloom.frontends.hf.blocks.core import library_of, replaces
from irloom.frontends.hf.sparse import block_index


@replaces("MiniMaxM3VLIndexer")
def indexer(self: Any, hidden_states: Tensor, position_embeddings: Any, *_: Any, **__: Any) -> Tensor:
    """``hidden_states`` [B, T, H] to the blocks [B, T, heads, topk] of each token."""
    shape = (*hidden_states.shape[:2], -1, self.head_dim)
    q = self.q_norm(self.q_proj(hidden_states).view(shape))
    k = self.k_norm(self.k_proj(hidden_states).view(shape))
    cos, sin = (x[..., : self.head_dim] for x in position_embeddings)
    q, k = library_of(self).apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    return block_index(q, k.squeeze(2), self.block_size, self.topk_blocks, self.local_blocks)
