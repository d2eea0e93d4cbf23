"""Decoders with latent attention: DeepSeek V2 and V3, and what has their form (Kimi, Moonlight)."""

from __future__ import annotations

from typing import Any

from irloom.frontends.nemo.families.core import HF_ACTIVATIONS, Family, first, rope, sizes
from irloom.frontends.nemo.families.llama import ENDS, LAYER, MLP, NORMS, TO
from irloom.frontends.nemo.families.moe import EXPERTS, routing, shared
from irloom.frontends.nemo.model import Model
from irloom.frontends.nemo.rules import norm, rule
from irloom.frontends.nemo.settings import Latent

_MLA = "self_attention"
BIAS = "mlp.router.expert_bias"
LATENT = (
    rule(f"{LAYER}.{_MLA}.linear_q_proj.weight", f"{TO}.self_attn.q_proj.weight"),
    rule(f"{LAYER}.{_MLA}.linear_q_down_proj.weight", f"{TO}.self_attn.q_a_proj.weight"),
    rule(f"{LAYER}.{_MLA}.linear_q_up_proj.weight", f"{TO}.self_attn.q_b_proj.weight"),
    rule(f"{LAYER}.{_MLA}.q_layernorm.weight", f"{TO}.self_attn.q_a_layernorm.weight", make=norm),
    rule(f"{LAYER}.{_MLA}.linear_kv_down_proj.weight", f"{TO}.self_attn.kv_a_proj_with_mqa.weight"),
    rule(f"{LAYER}.{_MLA}.linear_kv_up_proj.weight", f"{TO}.self_attn.kv_b_proj.weight"),
    rule(f"{LAYER}.{_MLA}.kv_layernorm.weight", f"{TO}.self_attn.kv_a_layernorm.weight", make=norm),
    rule(f"{LAYER}.{_MLA}.linear_proj.weight", f"{TO}.self_attn.o_proj.weight"),
)
CHOICE = rule(f"{LAYER}.{BIAS}", f"{TO}.mlp.gate.e_score_correction_bias")
RULES = (*ENDS, *NORMS, *LATENT, *MLP, *EXPERTS, *shared("shared_experts"))


def _latent(model: Model) -> Latent:
    assert model.settings.latent is not None, "asked of families with latent attention only"
    return model.settings.latent


def _no_deepseek(model: Model) -> str | None:
    if model.settings.latent is None:
        return "no latent attention"
    if not model.experts:
        return "no experts"
    dense, how = model.layers_with("mlp.linear_fc2.weight"), routing(model)
    return first(
        (not model.settings.rms or not model.gated, "LayerNorm, or MLPs without gates"),
        (dense != list(range(len(dense))), "dense layers after layers of experts"),
        (not model.shared_width or model.has("mlp.shared_experts.gate_weight"), "no plain shared experts"),
        (model.shared_width % model.expert_width != 0, "shared experts of another width"),
        (how.groups > 1 and how.topk % how.kept != 0, "groups that share the choice unevenly"),
        (model.settings.window is not None, "a sliding window"),
    )


def _no_v3(model: Model) -> str | None:
    """V3 rates a group by its two best experts, Megatron by as many as a kept group gives."""
    return _no_deepseek(model) or first(
        (not routing(model).sigmoid, "experts chosen by softmax"),
        (not model.has(BIAS), "no bias for the choice"),
        (_limited(model) and routing(model).topk // routing(model).kept != 2, "groups not rated by two"),
    )


def _no_v2(model: Model) -> str | None:
    """V2 rates a group by its best expert."""
    return _no_deepseek(model) or first(
        (routing(model).sigmoid or model.has(BIAS), "experts chosen by sigmoid or bias"),
        (not routing(model).before, "softmax after the choice"),
        (_limited(model) and routing(model).topk // routing(model).kept != 1, "groups not rated by one"),
    )


def _limited(model: Model) -> bool:
    how = routing(model)
    return how.groups > 1 and how.kept < how.groups


def _config(model: Model) -> dict[str, Any]:
    how, latent, q_down = routing(model), _latent(model), "self_attention.linear_q_down_proj.weight"
    return {
        **sizes(model),
        "rope_parameters": _rope(model, latent),
        "num_key_value_heads": model.settings.heads,
        "rms_norm_eps": model.settings.epsilon,
        "hidden_act": HF_ACTIVATIONS[model.settings.activation],
        "intermediate_size": model.intermediate or model.expert_width,
        "moe_intermediate_size": model.expert_width,
        "n_routed_experts": model.experts,
        "n_shared_experts": model.shared_width // model.expert_width,
        "num_experts_per_tok": how.topk,
        "routed_scaling_factor": how.scale,
        "first_k_dense_replace": len(model.layers_with("mlp.linear_fc2.weight")),
        "q_lora_rank": model.dims(q_down)[0] if model.has(q_down) else None,
        "kv_lora_rank": model.dims("self_attention.kv_layernorm.weight")[0],
        "qk_nope_head_dim": latent.plain,
        "qk_rope_head_dim": latent.rotated,
        "v_head_dim": latent.value,
    }


def _v3(model: Model) -> dict[str, Any]:
    how = routing(model)
    groups = {"n_group": how.groups, "topk_group": how.kept if how.groups > 1 else 1}
    return {**_config(model), **groups, "norm_topk_prob": how.topk > 1, "rope_interleave": True}


def _v2(model: Model) -> dict[str, Any]:
    how = routing(model)
    limited = {"topk_method": "group_limited_greedy", "n_group": how.groups, "topk_group": how.kept}
    choice = limited if _limited(model) else {"topk_method": "greedy", "n_group": 1, "topk_group": 1}
    return {**_config(model), **choice, "norm_topk_prob": False}


def _rope(model: Model, latent: Latent) -> dict[str, Any]:
    if latent.yarn is None:
        return rope(model)
    yarn = latent.yarn
    return {
        "rope_type": "yarn",
        "rope_theta": model.settings.rope.base,
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
        "mscale": yarn.mscale,
        "mscale_all_dim": yarn.mscale_all_dim,
    }


FAMILIES = (
    Family("deepseek_v3", _no_v3, _v3, (*RULES, CHOICE)),
    Family("deepseek_v2", _no_v2, _v2, RULES),
)
