"""llama.cpp's metadata as fields of the library's configs, alike for every architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from irloom.frontends.gguf.architectures import ARCHITECTURES, model_type
from irloom.frontends.gguf.header import Header
from irloom.ir.errors import CheckpointError

_FIELDS: dict[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings", "n_positions"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "embedding_length": ("hidden_size", "n_embd"),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon", "layer_norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.kv_lora_rank": ("kv_lora_rank",),
    "leading_dense_block_count": ("first_k_dense_replace",),
    "expert_count": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "expert_used_count": ("num_experts_per_tok", "moe_k"),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_shared_count": ("n_shared_experts", "moe_num_shared_experts"),
    "expert_group_count": ("n_group",),
    "expert_group_used_count": ("topk_group",),
    "expert_weights_norm": ("norm_topk_prob",),
}
"""What a file says, and what the library calls it: the first of these that the config has."""

_SCALES: dict[str, tuple[tuple[str, ...], float]] = {
    "attention.scale": (("attention_multiplier",), 0.0),
    "attention.clamp_kqv": (("clip_qkv",), 0.0),
    "attention.max_alibi_bias": ((), 0.0),
    "attention.sliding_window": (("sliding_window",), 0.0),
    "attn_logit_softcapping": (("attn_logit_softcapping",), 0.0),
    "final_logit_softcapping": (("final_logit_softcapping",), 0.0),
    "router_logit_softcapping": ((), 0.0),
    "logit_scale": (("logit_scale", "logits_scaling"), 1.0),
    "embedding_scale": (("embedding_multiplier",), 1.0),
    "residual_scale": (("residual_multiplier",), 1.0),
    "expert_weights_scale": (("routed_scaling_factor",), 1.0),
}
"""Numbers that change what a model answers, and their value where they do not."""

_FLAGS: dict[str, str] = {
    "attention_bias": "attn_q.bias attn_qkv.bias",
    "attention_out_bias": "attn_output.bias",
    "use_qkv_bias": "attn_q.bias",
    "mlp_bias": "ffn_up.bias",
    "use_bias": "attn_q.bias",
    "use_qk_norm": "attn_q_norm.weight",
}
"""Flags of configs that tensors show."""


def own_config(header: Header) -> Any:
    """The library's config of an architecture that is in ``ARCHITECTURES``."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known = ARCHITECTURES[header.architecture]
    name = model_type(header, known)
    if name not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{header.path}: transformers has no `{name}`, which `{header.architecture}` is read as",
            hint="pip install -U transformers",
        )
    kind: Any = CONFIG_MAPPING[name]
    usual = vars(kind())
    fields = {
        **known.fixed,
        **_stated(header, usual),
        **_scales(header, usual),
        **_head(header, kind, usual),
        **_shown(header, usual),
        **_tokens(header),
        **{k: v for k, v in known.more(header).items() if k in usual},
    }
    try:
        return kind(**fields)
    except Exception as error:  # whatever a config class raises for values that it does not take
        raise CheckpointError(
            f"{header.path}: its metadata makes no {kind.__name__}: {error}".splitlines()[0],
            hint="the file is damaged, or was written by an older or newer llama.cpp",
        ) from None


def _stated(header: Header, usual: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that the metadata states."""
    found: dict[str, Any] = {}
    for key, names in _FIELDS.items():
        value, name = header.fact(key, None), next((n for n in names if n in usual), None)
        if value is not None and name is not None:
            found[name] = _alike(header, key, value)
    if (theta := header.fact("rope.freq_base", None)) is not None:
        found["rope_theta"] = theta
    return {name: header.decimal(value) for name, value in found.items()}


def _scales(header: Header, usual: Mapping[str, Any]) -> dict[str, Any]:
    """Scales that the metadata states; ``CheckpointError`` for one that the model has no place for."""
    found: dict[str, Any] = {}
    for key, (names, neutral) in _SCALES.items():
        value, name = header.fact(key, None), next((n for n in names if n in usual), None)
        if value is None:
            continue
        if name is not None:
            found[name] = None if value == 0 and neutral == 0 else header.decimal(value)
        elif value != neutral:
            raise CheckpointError(
                f"{header.path}: `{key}` is {value}, and the library's class has no place for it",
                hint="use the model's safetensors checkpoint",
            )
    return found


def _head(header: Header, kind: type, usual: Mapping[str, Any]) -> dict[str, Any]:
    """The size of a head where a config takes one; latent attention has several."""
    latent = header.fact("attention.kv_lora_rank", None) is not None
    if latent or isinstance(getattr(kind, "head_dim", None), property):
        return {}
    share = header.fact("embedding_length", 0) // max(header.fact("attention.head_count", 1), 1)
    size = header.fact("attention.key_length", None) or ("head_dim" in usual and share)
    return {"head_dim": size} if size else {}


def _alike(header: Header, key: str, value: Any) -> Any:
    """A value that may be stated layer by layer; the library's classes take one for all."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise CheckpointError(
            f"{header.path}: `{header.architecture}.{key}` differs by layer: {value[:4]}...",
            hint="use the model's safetensors checkpoint",
        )
    return value[0]


def _shown(header: Header, usual: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that the tensors show."""
    names = {name.split(".", 2)[2] for name in header.entries if name.startswith("blk.")}
    flags = {flag: bool(names & set(leaves.split())) for flag, leaves in _FLAGS.items() if flag in usual}
    return {**flags, "tie_word_embeddings": "output.weight" not in header.entries}


def _tokens(header: Header) -> dict[str, Any]:
    """Ids of special tokens, and None rather than a class's usual one, which may not exist here."""
    said = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    ids = {name: header.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in said.items()}
    return {**ids, "vocab_size": header.vocabulary}
