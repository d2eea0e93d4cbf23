"""Qwen 4 attends to blocks of tokens that an indexer picks by their mean keys, and hashes n-grams of ids."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from irloom.frontends.hf.blocks.core import library_of, replaces
from irloom.frontends.hf.recurrent import torch_op
from irloom.frontends.hf.sparse import sparse_index
from irloom.ir import ops

Turn = tuple[Tensor, Tensor]


@replaces("Qwen4ExpTextAttention")
def attention(
    self: Any, hidden_states: Tensor, position_embeddings: Turn, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """``hidden_states`` [B, T, H]; a token sees the blocks that its indexer picks, and its own."""
    shape = hidden_states.shape[:-1]
    q, gate = self.q_proj(hidden_states).view(*shape, -1, 2 * self.head_dim).chunk(2, dim=-1)
    k, v = (p(hidden_states).view(*shape, -1, self.head_dim) for p in (self.k_proj, self.v_proj))
    q, k = (_turned(self, norm(x), position_embeddings) for norm, x in ((self.q_norm, q), (self.k_norm, k)))
    index = _index(self.indexer, hidden_states, position_embeddings)
    heads = (x.transpose(1, 2) for x in (q, k, v))
    out = torch.ops.irloom.attention(
        *heads, None, None, self.scaling, 0.0, 0, True, self.layer_idx, index=index,
        block=self.indexer.compress_ratio,
    )  # fmt: skip
    return self.o_proj(out.reshape(*shape, -1) * torch.sigmoid(gate.reshape(*shape, -1))), None


def _index(self: Any, hidden_states: Tensor, turn: Turn) -> Tensor:
    """The best blocks of each token: the mean of a block's keys, normed, and turned by its first position."""
    ratio, size = self.compress_ratio, self.index_head_dim
    widths = [self.index_n_heads * size, self.index_kv_heads * size]
    q, keys = self.index_qk_proj(hidden_states).split(widths, dim=-1)
    q = _turned(self, self.q_layernorm(q.unflatten(-1, (-1, size))), turn)
    mean = keys.new_full((size, ratio), 1 / ratio)
    pooled = self.k_layernorm(torch_op(ops.causal_conv)(keys, mean, None))
    first = tuple(_earlier(x, ratio - 1) for x in turn)
    pooled = _turned(self, pooled.unsqueeze(2), first).squeeze(2)
    return sparse_index(q, pooled, torch.ones_like(q[..., 0]), self.block_topk, ratio)


def _turned(self: Any, x: Tensor, turn: tuple[Tensor, ...]) -> Tensor:
    """The library's rotation of ``x`` [B, T, H, D], by the function beside the block's class."""
    return library_of(self).apply_rotary_pos_emb(x, cos=turn[0], sin=turn[1], unsqueeze_dim=2)


def _earlier(x: Tensor, tokens: int) -> Tensor:
    """``x`` [B, T, C] of as many tokens before."""
    channels = x.shape[-1]
    taps = torch.cat([x.new_ones(channels, 1), x.new_zeros(channels, tokens)], dim=-1)
    return torch_op(ops.causal_conv)(x, taps, None)


@replaces("Qwen4ExpTextNGramEmbedding")
def ngram_embedding(self: Any, input_ids: Tensor, *_: Any) -> Tensor:
    """``input_ids`` [B, T] to embeddings [B, T, E] of the n-grams that end there, none across an end."""
    end, ids = self.eos_token_id, input_ids.long()
    mixed, earlier = ids * self.layer_multipliers[0], ids
    ended = torch.zeros_like(ids, dtype=torch.bool)
    found: list[Tensor] = []
    for n in range(1, self.ngram_size):
        earlier = torch_op(ops.token_shift)(earlier - end) + end
        ended = ended | (earlier == end)
        mixed = mixed ^ (torch.where(ended, end, earlier) * self.layer_multipliers[n])
        heads = slice((n - 1) * self.heads_per_ngram, n * self.heads_per_ngram)
        rows = torch.remainder(mixed.unsqueeze(-1), self.ngram_heads_vocab_sizes[heads])
        found.append(rows + self.ngram_heads_offsets[heads])
    return self.ngram_embedding(torch.cat(found, dim=-1)).flatten(-2)


@replaces("Qwen4ExpTextPLELayer", method="_short_conv")
def short_conv(self: Any, hidden_states: Tensor, *_: Any) -> Tensor:
    """A convolution of ``hidden_states`` [B, T, C] whose taps lie apart: one with zeros between."""
    apart = self.conv1d.dilation[0]
    weight = self.conv1d.weight.squeeze(1)[..., None]
    weight = torch.cat([weight, weight.new_zeros(*weight.shape[:2], apart - 1)], dim=-1).flatten(-2)
    return F.silu(torch_op(ops.causal_conv)(hidden_states, weight[:, : self.short_conv_state_len + 1], None))
