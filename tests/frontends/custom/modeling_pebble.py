"""A model that transformers does not know, as an author would put it beside its config.json."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.generation.utils import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_pebble import PebbleConfig
from .rotation import frequencies, rotated


class PebbleAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.q = nn.Linear(config.hidden_size, config.num_attention_heads * self.head_dim, bias=False)
        self.kv = nn.Linear(config.hidden_size, 2 * config.num_key_value_heads * self.head_dim, bias=False)
        self.o = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.register_buffer("frequencies", frequencies(self.head_dim), persistent=False)

    def forward(self, x, positions, mask, cache):
        shape = (*x.shape[:-1], -1, self.head_dim)
        k, v = self.kv(x).chunk(2, dim=-1)
        q, k, v = (t.view(shape).transpose(1, 2) for t in (self.q(x), k, v))
        q, k = (rotated(t, positions, self.frequencies) for t in (q, k))
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get(self.config._attn_implementation, eager_attention)
        out, _ = attend(self, q, k, v, mask, scaling=self.head_dim**-0.5, dropout=0.0)
        return self.o(out.reshape(*x.shape[:-1], -1))


def eager_attention(module, q, k, v, mask, scaling, dropout):
    k, v = (t.repeat_interleave(module.num_key_value_groups, dim=1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) * scaling
    return ((scores if mask is None else scores + mask).softmax(-1) @ v).transpose(1, 2), None


class PebbleLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.norm_attention = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.attention = PebbleAttention(config, layer_idx)
        self.norm_mlp = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.up = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.down = nn.Linear(3 * config.hidden_size, config.hidden_size)

    def forward(self, x, positions, mask, cache):
        x = x + self.attention(self.norm_attention(x), positions, mask, cache)
        return x + self.down(torch.relu(self.up(self.norm_mlp(x))) ** 2)


class PebbleForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = PebbleConfig
    _supports_sdpa = _supports_attention_backend = True

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(PebbleLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, position_ids=None, attention_mask=None, past_key_values=None, **_):
        x = self.embed(input_ids)
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        for layer in self.layers:
            x = layer(x, position_ids, mask, past_key_values)
        return CausalLMOutputWithPast(
            logits=self.lm_head(self.norm(x)) * self.config.logit_scale, past_key_values=past_key_values
        )
