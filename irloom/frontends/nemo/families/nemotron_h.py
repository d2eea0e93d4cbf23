"""Hybrids of Mamba 2, attention, MLPs and experts: Nemotron-H, Nemotron Nano 2 and Nemotron 3."""

from __future__ import annotations

from typing import Any

from irloom.frontends.nemo.families.core import HF_ACTIVATIONS, Family, first
from irloom.frontends.nemo.families.llama import LAYER
from irloom.frontends.nemo.families.moe import routing
from irloom.frontends.nemo.model import Model
from irloom.frontends.nemo.rules import heads, norm, rule, words

TO = "backbone.layers.{i}"
_BIAS = "mlp.router.expert_bias"
_SHARED = "mlp.shared_experts"
RULES = (
    rule("embedding.word_embeddings.weight", "backbone.embeddings.weight", make=words),
    rule("output_layer.weight", "lm_head.weight", make=words),
    rule("decoder.final_layernorm.weight", "backbone.norm_f.weight", make=norm),
    *(
        rule(f"{LAYER}.{name}.weight", f"{TO}.norm.weight", make=norm)
        for name in ("norm", "input_layernorm", "pre_mlp_layernorm")
    ),
    *(rule(f"{LAYER}.mixer.{name}", f"{TO}.mixer.{name}") for name in ("A_log", "D", "dt_bias")),
    *(
        rule(f"{LAYER}.mixer.{name}.{{s}}", f"{TO}.mixer.{name}.{{s}}")
        for name in ("in_proj", "conv1d", "norm", "out_proj")
    ),
    rule(
        f"{LAYER}.self_attention.linear_qkv.weight",
        *(f"{TO}.mixer.{x}_proj.weight" for x in "qkv"),
        make=heads,
    ),
    rule(f"{LAYER}.self_attention.linear_proj.weight", f"{TO}.mixer.o_proj.weight"),
    rule(f"{LAYER}.mlp.linear_fc1.{{s}}", f"{TO}.mixer.up_proj.{{s}}"),
    rule(f"{LAYER}.mlp.linear_fc2.{{s}}", f"{TO}.mixer.down_proj.{{s}}"),
    rule(f"{LAYER}.mlp.router.weight", f"{TO}.mixer.gate.weight"),
    rule(f"{LAYER}.{_BIAS}", f"{TO}.mixer.gate.e_score_correction_bias"),
    rule(f"{LAYER}.mlp.experts.{{e}}.linear_fc1.weight", f"{TO}.mixer.experts.{{e}}.up_proj.weight"),
    rule(f"{LAYER}.mlp.experts.{{e}}.linear_fc2.weight", f"{TO}.mixer.experts.{{e}}.down_proj.weight"),
    rule(f"{LAYER}.{_SHARED}.linear_fc1.weight", f"{TO}.mixer.shared_experts.up_proj.weight"),
    rule(f"{LAYER}.{_SHARED}.linear_fc2.weight", f"{TO}.mixer.shared_experts.down_proj.weight"),
    rule(f"{LAYER}.mlp.fc1_latent_proj.weight", f"{TO}.mixer.fc1_latent_proj.weight"),
    rule(f"{LAYER}.mlp.fc2_latent_proj.weight", f"{TO}.mixer.fc2_latent_proj.weight"),
)


def _lacks(model: Model) -> str | None:
    said = model.settings
    if not model.has("mixer.A_log"):
        return "no Mamba layers"
    pattern = said.pattern or _pattern(model)
    return first(
        (len(pattern) != model.layers or bool(set(pattern) - set("M*-E")), f"layers {pattern!r}"),
        (pattern != _pattern(model), f"layers {_pattern(model)!r}, not {pattern!r} as the config says"),
        (not said.rms, "LayerNorm"),
        (said.position != "none" and model.has("self_attention.linear_qkv.weight"), "rotary positions"),
        (_has_mlp(model) and model.gated, "gated MLPs"),
        (said.latent is not None, "latent attention"),
        (bool(model.experts) and not _sigmoid(model), "experts not chosen by sigmoid and bias"),
    )


def _has_mlp(model: Model) -> bool:
    return model.has("mlp.linear_fc2.weight") or bool(model.experts)


def _sigmoid(model: Model) -> bool:
    how = routing(model)
    grouped = how.groups > 1 and how.kept < how.groups
    return how.sigmoid and model.has(_BIAS) and (not grouped or how.topk // how.kept == 2)


def _pattern(model: Model) -> str:
    """A letter a layer, as its tensors show it."""
    kinds = {
        "mixer.A_log": "M",
        "self_attention.linear_qkv.weight": "*",
        "mlp.linear_fc2.weight": "-",
        "mlp.router.weight": "E",
    }
    at = {i: letter for name, letter in kinds.items() for i in model.layers_with(name)}
    return "".join(at.get(i, "?") for i in range(model.layers))


def _config(model: Model) -> dict[str, Any]:
    said = model.settings
    return {
        "vocab_size": model.vocab,
        "hidden_size": model.hidden,
        "hybrid_override_pattern": _pattern(model),
        "tie_word_embeddings": model.tied,
        "max_position_embeddings": said.positions,
        "layer_norm_epsilon": said.epsilon,
        "intermediate_size": model.intermediate or model.hidden,
        "mlp_hidden_act": HF_ACTIVATIONS[said.activation],
        "mlp_bias": model.has("mlp.linear_fc1.bias"),
        "use_bias": model.has("mixer.in_proj.bias"),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **_mamba(model),
        **_attention(model),
        **(_experts(model) if model.experts else {}),
    }


def _mamba(model: Model) -> dict[str, Any]:
    (count,), groups = model.dims("mixer.A_log"), model.settings.mamba_groups
    inner, (channels, _, kernel) = model.dims("mixer.out_proj.weight")[1], model.dims("mixer.conv1d.weight")
    return {
        "mamba_num_heads": count,
        "mamba_head_dim": inner // count,
        "n_groups": groups,
        "ssm_state_size": (channels - inner) // (2 * groups),
        "conv_kernel": kernel,
        "use_conv_bias": model.has("mixer.conv1d.bias"),
        "expand": max(1, inner // model.hidden),
    }


def _attention(model: Model) -> dict[str, Any]:
    if not model.has("self_attention.linear_qkv.weight"):
        return {}
    said = model.settings
    heads_ = {"num_attention_heads": said.heads, "num_key_value_heads": said.groups}
    return {**heads_, "head_dim": model.head_dim, "sliding_window": said.window}


def _experts(model: Model) -> dict[str, Any]:
    how, down = routing(model), "mlp.fc1_latent_proj.weight"
    return {
        "n_routed_experts": model.experts,
        "num_experts_per_tok": how.topk,
        "moe_intermediate_size": model.expert_width,
        "moe_shared_expert_intermediate_size": model.shared_width,
        "moe_latent_size": model.dims(down)[0] if model.has(down) else None,
        "routed_scaling_factor": how.scale,
        "n_group": how.groups,
        "topk_group": how.kept if how.groups > 1 else 1,
        "norm_topk_prob": how.topk > 1,
    }


FAMILIES = (Family("nemotron_h", _lacks, _config, RULES),)
