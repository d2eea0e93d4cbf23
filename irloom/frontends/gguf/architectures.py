"""Architectures of GGUF files that irloom knows: the library's class, and what a file leaves out.

llama.cpp spells the facts of all models alike (``fields.py``). What differs is written here: facts that it
knows by heart, and which of the library's rules undoes what its converter does to tensors. Architectures that
are not here are left to the library's own mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from irloom.frontends.gguf.header import Header

Fields = dict[str, Any]
_SOFTMAX, _SIGMOID = 1, 2  # values of `expert_gating_func`


def _nothing(header: Header) -> Fields:
    return {}


@dataclass(frozen=True)
class Architecture:
    """``model_type`` is the library's; ``moe`` that of a file with experts, where it is another.

    ``like`` names the library's tensor processor whose rules hold: ``llama`` for rotary rows stored pair by
    pair, ``gemma2`` for norms stored plus one. ``more`` reads what is not said in the common way.
    """

    model_type: str
    like: str | None = None
    moe: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    more: Callable[[Header], Fields] = _nothing


def _gemma_scale(layers: int) -> Callable[[Header], Fields]:
    """Scores are scaled by the head's size; in the model of ``layers``, by the width over heads."""

    def read(header: Header) -> Fields:
        share = header.fact("embedding_length", 0) // header.fact("attention.head_count", 1)
        head = header.fact("attention.key_length", share)
        return {"query_pre_attn_scalar": share if header.fact("block_count", 0) == layers else head}

    return read


def _falcon(header: Header) -> Fields:
    kv = header.fact("attention.head_count_kv", 1)
    apart = "blk.0.attn_norm_2.weight" in header.entries
    return {
        "new_decoder_architecture": apart,
        "multi_query": kv == 1,
        "num_kv_heads": kv,
        "num_ln_in_parallel_attn": 2 if apart else None,
        "bias": "blk.0.attn_qkv.bias" in header.entries,
        "alibi": False,
    }


def _deepseek(header: Header) -> Fields:
    """Latent attention. Files since 2025 state sizes of the absorbed form, and those of heads as ``_mla``."""
    rope = header.fact("rope.dimension_count", 64)
    key = header.fact("attention.key_length_mla", None) or header.fact("attention.key_length", 192)
    value = header.fact("attention.value_length_mla", None) or header.fact("attention.value_length", 128)
    found: Fields = {
        "num_key_value_heads": header.fact("attention.head_count", 1),
        "q_lora_rank": header.fact("attention.q_lora_rank", None),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": key - rope,
        "v_head_dim": value,
        "head_dim": rope,
        "norm_topk_prob": header.fact("expert_weights_norm", False),
    }
    if not sigmoid(header):
        groups = header.fact("expert_group_count", 1)
        found["topk_method"] = "group_limited_greedy" if groups > 1 else "greedy"
    return found


def sigmoid(header: Header) -> bool:
    """Whether experts are chosen by sigmoids, as DeepSeek V3 does."""
    said = header.fact("expert_gating_func", None)
    return said == _SIGMOID if said else any(n.endswith("exp_probs_b.bias") for n in header.entries)


def _extra_layers(header: Header) -> Fields:
    """Layers that predict further tokens are counted in the file, and are no part of the model."""
    extra = header.fact("nextn_predict_layers", 0)
    return {"num_hidden_layers": header.fact("block_count", 0) - extra, "num_nextn_predict_layers": extra}


def _stablelm(header: Header) -> Fields:
    return {
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in header.entries,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in header.entries,
    }


def _ernie_moe(header: Header) -> Fields:
    dense = header.fact("leading_dense_block_count", 0)
    return {
        "moe_layer_start_index": dense,
        "moe_layer_end_index": header.fact("block_count", 0) - 1,
        "moe_layer_interval": header.fact("interleave_moe_layer_step", 1),
    }


_ROUTED = {"norm_topk_prob": False}
"""What llama.cpp does where the file does not say."""

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", like="llama", moe="mixtral"),
    "qwen2": Architecture("qwen2"),
    "qwen2vl": Architecture("qwen2"),
    "qwen2moe": Architecture("qwen2_moe", fixed=_ROUTED),
    "qwen3": Architecture("qwen3"),
    "qwen3vl": Architecture("qwen3"),
    "qwen3moe": Architecture("qwen3_moe", fixed={"norm_topk_prob": True}),
    "qwen3vlmoe": Architecture("qwen3_moe", fixed={"norm_topk_prob": True}),
    "gemma": Architecture("gemma", like="gemma2"),
    "gemma2": Architecture("gemma2", like="gemma2", more=_gemma_scale(46)),
    "gemma3": Architecture("gemma3_text", like="gemma2", more=_gemma_scale(62)),
    "phi2": Architecture("phi"),
    "phi3": Architecture("phi3"),
    "starcoder2": Architecture("starcoder2"),
    "stablelm": Architecture("stablelm", more=_stablelm),
    "granite": Architecture("granite", like="llama"),
    "granitemoe": Architecture("granitemoe", like="llama"),
    "command-r": Architecture("cohere"),
    "cohere2": Architecture("cohere2"),
    "olmo": Architecture("olmo", like="llama"),
    "olmo2": Architecture("olmo2"),
    "olmoe": Architecture("olmoe", fixed=_ROUTED),
    "falcon": Architecture("falcon", more=_falcon),
    "nemotron": Architecture("nemotron", like="nemotron"),
    "deepseek2": Architecture("deepseek_v2", moe="deepseek_v3", more=_deepseek),
    "glm4": Architecture("glm4"),
    "chatglm": Architecture("glm"),
    "glm4moe": Architecture("glm4_moe", more=_extra_layers),
    "dots1": Architecture("dots1"),
    "exaone4": Architecture("exaone4"),
    "smollm3": Architecture("smollm3", like="llama"),
    "seed_oss": Architecture("seed_oss"),
    "ernie4_5": Architecture("ernie4_5"),
    "ernie4_5-moe": Architecture("ernie4_5_moe", more=_ernie_moe),
    "hunyuan-dense": Architecture("hunyuan_v1_dense"),
    "arcee": Architecture("arcee", like="llama"),
    "gpt-oss": Architecture("gpt_oss"),
}
"""By llama.cpp's name. The vision models' text parts count positions as their text models do."""


def model_type(header: Header, known: Architecture) -> str:
    """The library's name for the model in a file."""
    if known.moe is None:
        return known.model_type
    other = sigmoid(header) if header.architecture == "deepseek2" else header.fact("expert_count", 0) > 0
    return known.moe if other else known.model_type
