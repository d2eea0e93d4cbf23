"""What a family is, and which one a model belongs to.

Megatron has one class for all decoders; the library has one for each. A model's features decide: the kinds
of its norms, activation, biases, attention and experts, as its tensors show them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from irloom.frontends.nemo.model import Model
from irloom.frontends.nemo.rules import Rule
from irloom.ir.errors import CheckpointError

HF_ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "squared_relu": "relu2",
    "relu": "relu",
    "quick_gelu": "quick_gelu",
}


@dataclass(frozen=True)
class Family:
    """An architecture of the library: ``model_type`` there, which models are of it, and how they become it.

    ``lacks`` says what a model has, or has not, that this family cannot be; None where it is of the family.
    """

    model_type: str
    lacks: Callable[[Model], str | None]
    config: Callable[[Model], dict[str, Any]]
    rules: tuple[Rule, ...]


def family_of(model: Model) -> Family:
    """The first family that a model lacks nothing of."""
    from irloom.frontends.nemo.families import (
        deepseek,
        gemma,
        gpt2,
        layernorm,
        llama,
        moe,
        nemotron_h,
    )

    known = (
        *nemotron_h.FAMILIES,
        *deepseek.FAMILIES,
        *gpt2.FAMILIES,
        *gemma.FAMILIES,
        *moe.FAMILIES,
        *llama.FAMILIES,
        *layernorm.FAMILIES,
    )
    reasons: dict[str, str] = {}
    for family in known:
        why = family.lacks(model)
        if why is None:
            return family
        reasons[family.model_type] = why
    shown = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    raise CheckpointError(
        f"{model.path}: no architecture of the library is known for a model with {model.describe()}",
        hint=f"it is not {shown}",
    )


def first(*reasons: tuple[bool, str]) -> str | None:
    """The first reason whose condition holds."""
    return next((why for holds, why in reasons if holds), None)


def sizes(model: Model) -> dict[str, Any]:
    """The fields of a config that nearly every architecture of the library has."""
    said = model.settings
    return {
        "vocab_size": model.vocab,
        "hidden_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": said.heads,
        "num_key_value_heads": said.groups,
        "max_position_embeddings": said.positions,
        "tie_word_embeddings": model.tied,
        "hidden_act": HF_ACTIVATIONS[said.activation],
        "rope_parameters": rope(model),
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def rope(model: Model) -> dict[str, Any]:
    said = model.settings.rope
    out: dict[str, Any] = {"rope_type": "default", "rope_theta": said.base}
    if said.share != 1.0:
        out["partial_rotary_factor"] = said.share
    if said.linear != 1.0:
        out |= {"rope_type": "linear", "factor": said.linear}
    if said.llama3:
        factor, low, high, original = said.llama3
        out |= {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }
    return out


def unusual(model: Model) -> str | None:
    """Why a model is none of the plain decoders: what only some families have, they take before."""
    said = model.settings
    return first(
        (said.latent is not None, "latent attention"),
        (model.has("mixer.A_log"), "Mamba layers"),
        (said.position != "rope", f"{said.position} positions"),
        (said.softcap is not None or said.logit_softcap is not None, "a softcap"),
        (said.attention_scale is not None and not _usual_scale(model), "an attention scale of its own"),
        (model.has("post_mlp_layernorm.weight"), "norms after products"),
    )


def _usual_scale(model: Model) -> bool:
    scale = model.settings.attention_scale or 0.0
    return abs(scale * model.head_dim**0.5 - 1) < 1e-6
