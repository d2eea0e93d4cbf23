"""Dense decoders with RMSNorm and gated MLPs: Llama, Mistral, Qwen 2 and 3, Phi 3."""

from __future__ import annotations

from typing import Any

from irloom.frontends.nemo.families.core import Family, first, sizes, unusual
from irloom.frontends.nemo.model import Model
from irloom.frontends.nemo.rules import Rule, fused_heads, halves, heads, norm, rule, same, words

LAYER, TO = "decoder.layers.{i}", "model.layers.{i}"
QKV_BIAS, OUT_BIAS, MLP_BIAS = (
    f"{place}.bias" for place in ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1")
)
Q_NORM = "self_attention.q_layernorm.weight"

ENDS = (
    rule("embedding.word_embeddings.weight", "model.embed_tokens.weight", make=words),
    rule("output_layer.weight", "lm_head.weight", make=words),
    rule("decoder.final_layernorm.weight", "model.norm.weight", make=norm),
)
NORMS = (
    rule(f"{LAYER}.input_layernorm.weight", f"{TO}.input_layernorm.weight", make=norm),
    rule(f"{LAYER}.pre_mlp_layernorm.weight", f"{TO}.post_attention_layernorm.weight", make=norm),
)
ATTENTION = (
    rule(
        f"{LAYER}.self_attention.linear_qkv.{{s}}",
        *(f"{TO}.self_attn.{x}_proj.{{s}}" for x in "qkv"),
        make=heads,
    ),
    rule(f"{LAYER}.self_attention.linear_proj.{{s}}", f"{TO}.self_attn.o_proj.{{s}}"),
    rule(f"{LAYER}.self_attention.q_layernorm.weight", f"{TO}.self_attn.q_norm.weight", make=norm),
    rule(f"{LAYER}.self_attention.k_layernorm.weight", f"{TO}.self_attn.k_norm.weight", make=norm),
)


def gated(
    source: str,
    target: str,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    what: str = "weight",
) -> tuple[Rule, Rule]:
    """Rules for a gated MLP: ``linear_fc1`` holds the gate and what it gates, one after the other."""
    gate, up, down = (f"{target}.{name}.{what}" for name in names)
    return rule(f"{source}.linear_fc1.{what}", gate, up, make=halves), rule(
        f"{source}.linear_fc2.{what}", down
    )


MLP = gated(f"{LAYER}.mlp", f"{TO}.mlp", what="{s}")
RULES = (*ENDS, *NORMS, *ATTENTION, *MLP)
PHI3_RULES = (
    *ENDS,
    *NORMS,
    rule(f"{LAYER}.self_attention.linear_qkv.weight", f"{TO}.self_attn.qkv_proj.weight", make=fused_heads),
    rule(f"{LAYER}.self_attention.linear_proj.weight", f"{TO}.self_attn.o_proj.weight"),
    rule(f"{LAYER}.mlp.linear_fc1.weight", f"{TO}.mlp.gate_up_proj.weight", make=same),
    rule(f"{LAYER}.mlp.linear_fc2.weight", f"{TO}.mlp.down_proj.weight"),
)


def decoder(model: Model) -> dict[str, Any]:
    """The config of a decoder with RMSNorm."""
    return {
        **sizes(model),
        "head_dim": model.head_dim,
        "intermediate_size": model.intermediate,
        "rms_norm_eps": model.settings.epsilon,
    }


def no_llama(model: Model) -> str | None:
    """Why a model has not the form of Llama."""
    return unusual(model) or first(
        (not model.settings.rms, "LayerNorm"),
        (not model.gated, "MLPs without gates"),
        (bool(model.experts), "experts"),
    )


def _llama(model: Model) -> dict[str, Any]:
    biased = {"attention_bias": model.has(OUT_BIAS), "mlp_bias": model.has(MLP_BIAS)}
    return {**decoder(model), **biased}


def _no_biased_llama(model: Model) -> str | None:
    return no_llama(model) or first(
        (model.has(Q_NORM), "norms on queries"),
        (model.settings.rope.share != 1.0, "heads that turn in part"),
        (model.has(QKV_BIAS) != model.has(OUT_BIAS), "bias on queries only"),
        (model.settings.window is not None, "a sliding window"),
    )


def _no_mistral(model: Model) -> str | None:
    return no_llama(model) or first(
        (model.settings.window is None, "no sliding window"),
        (any(model.has(x) for x in (Q_NORM, QKV_BIAS, OUT_BIAS, MLP_BIAS)), "bias, or norms on queries"),
        (model.settings.rope.share != 1.0, "heads that turn in part"),
    )


def _no_qwen2(model: Model) -> str | None:
    return no_llama(model) or first(
        (model.has(Q_NORM), "norms on queries"),
        (not model.has(QKV_BIAS) or model.has(OUT_BIAS) or model.has(MLP_BIAS), "other bias"),
        (model.settings.window is not None, "a sliding window"),
        (model.settings.rope.share != 1.0, "heads that turn in part"),
    )


def _no_qwen3(model: Model) -> str | None:
    return no_llama(model) or first(
        (not model.has(Q_NORM), "no norms on queries"),
        (model.has(QKV_BIAS) != model.has(OUT_BIAS) or model.has(MLP_BIAS), "other bias"),
        (model.settings.window is not None, "a sliding window"),
        (model.settings.rope.share != 1.0, "heads that turn in part"),
    )


def _no_phi3(model: Model) -> str | None:
    return no_llama(model) or first(
        (model.settings.rope.share == 1.0, "heads that turn whole"),
        (any(model.has(x) for x in (Q_NORM, QKV_BIAS, OUT_BIAS, MLP_BIAS)), "bias, or norms on queries"),
    )


FAMILIES = (
    Family("llama", _no_biased_llama, _llama, RULES),
    Family("mistral", _no_mistral, lambda m: {**decoder(m), "sliding_window": m.settings.window}, RULES),
    Family("qwen2", _no_qwen2, decoder, RULES),
    Family("qwen3", _no_qwen3, lambda m: {**decoder(m), "attention_bias": m.has(OUT_BIAS)}, RULES),
    Family("phi3", _no_phi3, lambda m: {**decoder(m), "sliding_window": m.settings.window}, PHI3_RULES),
)
