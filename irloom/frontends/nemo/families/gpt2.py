"""Decoders with learned positions: GPT 2 and 3, and StarCoder 1 with one head of keys and values."""

from __future__ import annotations

from typing import Any

from irloom.frontends.nemo.families.core import HF_ACTIVATIONS, Family, first
from irloom.frontends.nemo.families.llama import LAYER
from irloom.frontends.nemo.model import Model
from irloom.frontends.nemo.rules import Rule, fused_heads_transposed, norm, rule, same, transposed, words

TO = "transformer.h.{i}"
ENDS = (
    rule("embedding.word_embeddings.weight", "transformer.wte.weight", make=words),
    rule("embedding.position_embeddings.weight", "transformer.wpe.weight"),
    rule("output_layer.weight", "lm_head.weight", make=words),
    *(
        rule(f"{source}.{s}", f"{target}.{s}", make=norm if s == "weight" else same)
        for source, target in (
            ("decoder.final_layernorm", "transformer.ln_f"),
            (f"{LAYER}.input_layernorm", f"{TO}.ln_1"),
            (f"{LAYER}.pre_mlp_layernorm", f"{TO}.ln_2"),
        )
        for s in ("weight", "bias")
    ),
)


def _products(qkv: Any, plain: Any) -> tuple[Rule, ...]:
    return (
        rule(f"{LAYER}.self_attention.linear_qkv.{{s}}", f"{TO}.attn.c_attn.{{s}}", make=qkv),
        rule(f"{LAYER}.self_attention.linear_proj.{{s}}", f"{TO}.attn.c_proj.{{s}}", make=plain),
        rule(f"{LAYER}.mlp.linear_fc1.{{s}}", f"{TO}.mlp.c_fc.{{s}}", make=plain),
        rule(f"{LAYER}.mlp.linear_fc2.{{s}}", f"{TO}.mlp.c_proj.{{s}}", make=plain),
    )


def _no_gpt(model: Model) -> str | None:
    said = model.settings
    if said.position != "learned_absolute" or said.latent is not None or model.has("mixer.A_log"):
        return "other positions, latent attention or Mamba layers"
    return first(
        (said.rms or model.gated or bool(model.experts), "RMSNorm, gated MLPs or experts"),
        (model.has("self_attention.q_layernorm.weight"), "norms on queries"),
        (not model.has("mlp.linear_fc1.bias"), "no bias"),
        (model.head_dim * said.heads != model.hidden, "heads that are not as wide as the model"),
        (said.window is not None or said.softcap is not None, "a sliding window or a softcap"),
        ("embedding.position_embeddings.weight" not in model.tensors, "no embedding of positions"),
    )


def _config(model: Model) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab,
        "n_embd": model.hidden,
        "n_layer": model.layers,
        "n_head": model.settings.heads,
        "n_inner": model.intermediate,
        "n_positions": model.tensors["embedding.position_embeddings.weight"].dims[0],
        "layer_norm_epsilon": model.settings.epsilon,
        "activation_function": HF_ACTIVATIONS[model.settings.activation],
        "tie_word_embeddings": model.tied,
        "bos_token_id": None,
        "eos_token_id": None,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }


FAMILIES = (
    Family(
        "gpt2",
        lambda m: _no_gpt(m) or first((m.settings.groups != m.settings.heads, "heads that share keys")),
        _config,
        (*ENDS, *_products(fused_heads_transposed, transposed)),
    ),
    Family(
        "gpt_bigcode",
        lambda m: _no_gpt(m) or first((m.settings.groups != 1, "more than one head of keys")),
        lambda m: {**_config(m), "multi_query": True},
        (*ENDS, *_products(same, same)),
    ),
)
