"""Decoders with LayerNorm and rotary positions: Nemotron 3 and 4, StarCoder 2, and Stable LM's form."""

from __future__ import annotations

from typing import Any

from irloom.frontends.nemo.families.core import Family, first, sizes, unusual
from irloom.frontends.nemo.families.llama import (
    ATTENTION,
    LAYER,
    MLP,
    MLP_BIAS,
    OUT_BIAS,
    Q_NORM,
    QKV_BIAS,
    TO,
)
from irloom.frontends.nemo.model import Model
from irloom.frontends.nemo.rules import Make, Rule, centered_norm, norm, rule, same, words

_NORMS = (
    ("decoder.final_layernorm", "model.norm"),
    (f"{LAYER}.input_layernorm", f"{TO}.input_layernorm"),
    (f"{LAYER}.pre_mlp_layernorm", f"{TO}.post_attention_layernorm"),
)


def _ends(make: Make) -> tuple[Rule, ...]:
    """Embedding, head and norms, whose weights become what ``make`` says."""
    return (
        rule("embedding.word_embeddings.weight", "model.embed_tokens.weight", make=words),
        rule("output_layer.weight", "lm_head.weight", make=words),
        *(rule(f"{source}.weight", f"{target}.weight", make=make) for source, target in _NORMS),
        *(rule(f"{source}.bias", f"{target}.bias", make=same) for source, target in _NORMS),
    )


def _plain_mlp(up: str, down: str) -> tuple[Rule, ...]:
    return (
        rule(f"{LAYER}.mlp.linear_fc1.{{s}}", f"{TO}.mlp.{up}.{{s}}"),
        rule(f"{LAYER}.mlp.linear_fc2.{{s}}", f"{TO}.mlp.{down}.{{s}}"),
    )


def _no_layernorm(model: Model) -> str | None:
    return unusual(model) or first(
        (model.settings.rms, "RMSNorm"),
        (bool(model.experts), "experts"),
        (model.has(Q_NORM), "norms on queries"),
        (not model.has("input_layernorm.bias"), "norms without bias"),
    )


def _no_starcoder2(model: Model) -> str | None:
    bias = {model.has(name) for name in (QKV_BIAS, OUT_BIAS, MLP_BIAS)}
    return _no_layernorm(model) or first(
        (model.gated, "gated MLPs"),
        (len(bias) > 1, "bias on some products only"),
        (model.settings.zero_centered, "norms of one plus their weight"),
        (model.settings.rope.share != 1.0, "heads that turn in part"),
        (model.head_dim * model.settings.heads != model.hidden, "heads that are not as wide as the model"),
    )


def _no_nemotron(model: Model) -> str | None:
    return _no_layernorm(model) or first(
        (model.gated, "gated MLPs"),
        (model.has(QKV_BIAS) != model.has(OUT_BIAS), "bias on queries only"),
        (model.settings.window is not None, "a sliding window"),
    )


def _no_stablelm(model: Model) -> str | None:
    return _no_layernorm(model) or first(
        (not model.gated, "MLPs without gates"),
        (model.has(OUT_BIAS) or model.has(MLP_BIAS), "bias on products"),
        (model.settings.window is not None, "a sliding window"),
        (model.head_dim * model.settings.heads != model.hidden, "heads that are not as wide as the model"),
    )


def _nemotron(model: Model) -> dict[str, Any]:
    fields = {**sizes(model), "head_dim": model.head_dim, "intermediate_size": model.intermediate}
    fields["rope_parameters"].setdefault("partial_rotary_factor", 1.0)
    bias = {"attention_bias": model.has(QKV_BIAS), "mlp_bias": model.has(MLP_BIAS)}
    return {**fields, **bias, "norm_eps": model.settings.epsilon}


def _starcoder2(model: Model) -> dict[str, Any]:
    return {
        **sizes(model),
        "intermediate_size": model.intermediate,
        "norm_epsilon": model.settings.epsilon,
        "use_bias": model.has(QKV_BIAS),
        "sliding_window": model.settings.window,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
    }


def _stablelm(model: Model) -> dict[str, Any]:
    fields = {**sizes(model), "intermediate_size": model.intermediate}
    fields["rope_parameters"].setdefault("partial_rotary_factor", 1.0)
    bias = {"use_qkv_bias": model.has(QKV_BIAS)}
    return {**fields, **bias, "layer_norm_eps": model.settings.epsilon}


FAMILIES = (
    Family(
        "starcoder2",
        _no_starcoder2,
        _starcoder2,
        (*_ends(norm), *ATTENTION, *_plain_mlp("c_fc", "c_proj")),
    ),
    Family(
        "nemotron",
        _no_nemotron,
        _nemotron,
        (*_ends(centered_norm), *ATTENTION, *_plain_mlp("up_proj", "down_proj")),
    ),
    Family("stablelm", _no_stablelm, _stablelm, (*_ends(norm), *ATTENTION, *MLP)),
)
