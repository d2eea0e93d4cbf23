"""Gemma 1 and 2: RMSNorm of one plus its weight, gates of gelu, an embedding times the root of its width."""

from __future__ import annotations

from typing import Any

from irloom.frontends.nemo.families.core import HF_ACTIVATIONS, Family, first
from irloom.frontends.nemo.families.llama import (
    ATTENTION,
    LAYER,
    MLP,
    OUT_BIAS,
    Q_NORM,
    QKV_BIAS,
    TO,
    decoder,
)
from irloom.frontends.nemo.model import Model
from irloom.frontends.nemo.rules import Rule, centered_norm, rule, words

_AFTER = "post_mlp_layernorm.weight"


def _rules(*norms: tuple[str, str]) -> tuple[Rule, ...]:
    return (
        rule("embedding.word_embeddings.weight", "model.embed_tokens.weight", make=words),
        rule("output_layer.weight", "lm_head.weight", make=words),
        rule("decoder.final_layernorm.weight", "model.norm.weight", make=centered_norm),
        *(rule(f"{LAYER}.{a}.weight", f"{TO}.{b}.weight", make=centered_norm) for a, b in norms),
        *ATTENTION,
        *MLP,
    )


def _no_gemma(model: Model) -> str | None:
    said = model.settings
    return first(
        (said.latent is not None or model.has("mixer.A_log"), "latent attention or Mamba layers"),
        (said.position != "rope" or said.rope.share != 1.0, "other positions"),
        (not said.rms or bool(model.experts) or not model.gated, "LayerNorm, experts or no gates"),
        (not said.scaled_embedding, "an embedding that is not scaled"),
        (said.activation != "gelu_tanh", "gates of another function"),
        (any(model.has(name) for name in (Q_NORM, QKV_BIAS, OUT_BIAS)), "norms or bias on queries"),
    )


def _no_gemma1(model: Model) -> str | None:
    said = model.settings
    return _no_gemma(model) or first(
        (model.has(_AFTER), "norms after products"),
        (said.window is not None or said.softcap is not None, "a sliding window or a softcap"),
    )


def _no_gemma2(model: Model) -> str | None:
    return _no_gemma(model) or first((not model.has(_AFTER), "no norms after products"))


def _gemma(model: Model) -> dict[str, Any]:
    fields = decoder(model)
    return {**fields, "hidden_activation": HF_ACTIVATIONS[model.settings.activation]}


def _gemma2(model: Model) -> dict[str, Any]:
    said = model.settings
    scale = said.attention_scale or model.head_dim**-0.5
    return {
        **_gemma(model),
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": said.softcap,
        "final_logit_softcapping": said.logit_softcap,
        "sliding_window": said.window,
    }


FAMILIES = (
    Family(
        "gemma",
        _no_gemma1,
        _gemma,
        _rules(("input_layernorm", "input_layernorm"), ("pre_mlp_layernorm", "post_attention_layernorm")),
    ),
    Family(
        "gemma2",
        _no_gemma2,
        _gemma2,
        _rules(
            ("input_layernorm", "input_layernorm"),
            ("post_self_attn_layernorm", "post_attention_layernorm"),
            ("pre_mlp_layernorm", "pre_feedforward_layernorm"),
            ("post_mlp_layernorm", "post_feedforward_layernorm"),
        ),
    ),
)
