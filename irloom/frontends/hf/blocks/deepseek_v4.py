"""DeepSeek-V4 attends to a window of tokens and, in the same softmax, to blocks pooled into one entry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from irloom.frontends.hf.blocks.core import library_of, replaces
from irloom.frontends.hf.recurrent import torch_op
from irloom.frontends.hf.sparse import partial_attention, sparse_index
from irloom.ir import ops

Turn = tuple[Tensor, Tensor]


@replaces("DeepseekV4Attention")
def attention(
    self: Any, hidden_states: Tensor, position_embeddings: Any, position_ids: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """``hidden_states`` [B, T, H]; entries of blocks are seen once the block is complete."""
    turn = position_embeddings[self.rope_layer_type]
    shape = hidden_states.shape[:-1]
    residual = self.q_a_norm(self.q_a_proj(hidden_states))
    q = self.q_b_norm(self.q_b_proj(residual).view(*shape, -1, self.head_dim))
    q = _turned(self, q, turn)
    kv = self.kv_norm(self.kv_proj(hidden_states)).view(*shape, 1, self.head_dim)
    kv = _turned(self, kv, turn)
    near = partial_attention(q, kv, kv, self.sinks, scale=self.scaling, window=self.sliding_window)
    if self.compressor is None:
        out = near[0]
    else:
        out = _joined(near, _blocks(self, q, residual, hidden_states, position_ids))
    out = _turned(self, out, (turn[0], -turn[1]))
    grouped = self.o_a_proj(out.reshape(*shape, self.config.o_groups, -1)).flatten(2)
    return self.o_b_proj(grouped), None


def _turned(self: Any, x: Tensor, turn: Turn) -> Tensor:
    """The library's rotation of ``x`` [B, T, H, D], by the function beside the block's class."""
    return library_of(self).apply_rotary_pos_emb(x, *turn, unsqueeze_dim=2)


def _joined(near: tuple[Tensor, Tensor], far: tuple[Tensor, Tensor]) -> Tensor:
    """Two parts of one softmax [B, T, H, D], by the sums of their weights."""
    share = torch.sigmoid(near[1] - far[1])[..., None].to(near[0].dtype)
    return share * near[0] + (1 - share) * far[0]


def _blocks(
    self: Any, q: Tensor, residual: Tensor, hidden_states: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention to the entries of blocks: all of them, or those that an indexer picks."""
    pooling, index = self.compressor, None
    entries = _pooled(pooling, hidden_states, positions)[:, :, None]
    if hasattr(pooling, "indexer"):
        index = _index(pooling.indexer, residual, hidden_states, positions)
    return partial_attention(
        q, entries, entries, None, index, scale=self.scaling, stride=pooling.compress_rate
    )


def _pooled(self: Any, hidden_states: Tensor, positions: Tensor) -> Tensor:
    """An entry [B, T, D] per block, at its last token, turned by the position of its first.

    Where the projections have room for two series, blocks overlap: the second half is a block's own.
    """
    kv, gate = (
        x.unflatten(-1, (-1, self.head_dim)).flip(-2)
        for x in (self.kv_proj(hidden_states), self.gate_proj(hidden_states))
    )
    bias = self.position_bias.unflatten(-1, (-1, self.head_dim)).flip(-2)
    entries = self.kv_norm(torch_op(ops.block_pool)(kv, gate, bias, positions))
    first = positions - (self.compress_rate - 1)
    turn = self.rotary_emb(entries, position_ids=first, layer_type=self.rope_layer_type)
    return _turned(self, entries[:, :, None], turn)[:, :, 0]


def _index(self: Any, residual: Tensor, hidden_states: Tensor, positions: Tensor) -> Tensor:
    """The best blocks of each token."""
    turn = self.rotary_emb(hidden_states, position_ids=positions, layer_type=self.rope_layer_type)
    q = _turned(self, self.q_b_proj(residual).unflatten(-1, (-1, self.head_dim)), turn)
    scorer = self.scorer
    weight = scorer.weights_proj(hidden_states).float() * (scorer.weights_scaling * scorer.softmax_scale)
    keys = _pooled(self, hidden_states, positions)
    return sparse_index(q, keys, weight, self.index_topk, self.compress_rate)
