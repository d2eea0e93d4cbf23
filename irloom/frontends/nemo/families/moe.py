"""Decoders with RMSNorm whose tokens choose gated experts: Mixtral, Qwen 2 and 3 MoE."""

from __future__ import annotations

from typing import Any

from irloom.frontends.nemo.families.core import Family, first, unusual
from irloom.frontends.nemo.families.llama import (
    ATTENTION,
    ENDS,
    LAYER,
    MLP,
    NORMS,
    OUT_BIAS,
    Q_NORM,
    QKV_BIAS,
    TO,
    decoder,
    gated,
)
from irloom.frontends.nemo.model import Model
from irloom.frontends.nemo.rules import rule
from irloom.frontends.nemo.settings import Routing
from irloom.ir.errors import CheckpointError

SHARED_GATE = "mlp.shared_experts.gate_weight"
EXPERTS = (
    rule(f"{LAYER}.mlp.router.weight", f"{TO}.mlp.gate.weight"),
    *gated(f"{LAYER}.mlp.experts.{{e}}", f"{TO}.mlp.experts.{{e}}"),
)
_MIXTRAL = f"{TO}.block_sparse_moe"
MIXTRAL_EXPERTS = (
    rule(f"{LAYER}.mlp.router.weight", f"{_MIXTRAL}.gate.weight"),
    *gated(f"{LAYER}.mlp.experts.{{e}}", f"{_MIXTRAL}.experts.{{e}}", ("w1", "w3", "w2")),
)


def shared(name: str) -> tuple[Any, ...]:
    """Rules for the experts that every token takes, which the library calls ``name``."""
    return gated(f"{LAYER}.mlp.shared_experts", f"{TO}.mlp.{name}")


def routing(model: Model) -> Routing:
    """How experts are chosen; ``CheckpointError`` where tensors have experts and the config does not."""
    if model.settings.routing is None:
        raise CheckpointError(
            f"{model.path}: it has {model.experts} experts, but its config does not say how they are chosen",
            hint="the config is that of another model",
        )
    return model.settings.routing


def _no_softmax_moe(model: Model) -> str | None:
    if reason := unusual(model):
        return reason
    if not model.experts:
        return "no experts"
    how = routing(model)
    return first(
        (not model.settings.rms or not model.gated, "LayerNorm, or MLPs without gates"),
        (how.sigmoid or model.has("mlp.router.expert_bias"), "experts chosen by sigmoid or bias"),
        (how.scale != 1.0 or how.groups != 1, "experts chosen by group, or scaled"),
        (model.settings.rope.share != 1.0, "heads that turn in part"),
        (model.has(OUT_BIAS) or model.has("mlp.router.bias"), "bias on products"),
    )


def _no_mixtral(model: Model) -> str | None:
    return _no_softmax_moe(model) or first(
        (routing(model).before, "softmax before the choice"),
        (model.has(Q_NORM) or model.has(QKV_BIAS), "norms or bias on queries"),
        (bool(model.shared_width) or bool(model.intermediate), "shared experts or dense layers"),
    )


def _no_qwen2_moe(model: Model) -> str | None:
    return _no_softmax_moe(model) or first(
        (not model.has(SHARED_GATE), "no shared expert with a gate"),
        (model.has(Q_NORM), "norms on queries"),
        (model.settings.window is not None, "a sliding window"),
    )


def _no_qwen3_moe(model: Model) -> str | None:
    return _no_softmax_moe(model) or first(
        (not model.has(Q_NORM), "no norms on queries"),
        (bool(model.shared_width) or model.has(QKV_BIAS), "shared experts, or bias on queries"),
        (model.settings.window is not None, "a sliding window"),
    )


def _mixtral(model: Model) -> dict[str, Any]:
    return {
        **decoder(model),
        "intermediate_size": model.expert_width,
        "num_local_experts": model.experts,
        "num_experts_per_tok": routing(model).topk,
        "sliding_window": model.settings.window,
    }


def _qwen_moe(model: Model) -> dict[str, Any]:
    return {
        **decoder(model),
        "intermediate_size": model.intermediate or model.expert_width,
        "num_experts": model.experts,
        "num_experts_per_tok": routing(model).topk,
        "norm_topk_prob": not routing(model).before,
        "moe_intermediate_size": model.expert_width,
        "decoder_sparse_step": 1,
        "mlp_only_layers": model.layers_with("mlp.linear_fc2.weight"),
    }


def _qwen2_moe(model: Model) -> dict[str, Any]:
    bias = {"qkv_bias": model.has(QKV_BIAS), "shared_expert_intermediate_size": model.shared_width}
    return {**_qwen_moe(model), **bias}


FAMILIES = (
    Family("mixtral", _no_mixtral, _mixtral, (*ENDS, *NORMS, *ATTENTION, *MIXTRAL_EXPERTS)),
    Family(
        "qwen2_moe",
        _no_qwen2_moe,
        _qwen2_moe,
        (
            *ENDS,
            *NORMS,
            *ATTENTION,
            *MLP,
            *EXPERTS,
            *shared("shared_expert"),
            rule(f"{LAYER}.{SHARED_GATE}", f"{TO}.mlp.shared_expert_gate.weight"),
        ),
    ),
    Family("qwen3_moe", _no_qwen3_moe, _qwen_moe, (*ENDS, *NORMS, *ATTENTION, *MLP, *EXPERTS)),
)
