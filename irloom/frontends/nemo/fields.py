"""The settings of a model under Megatron-core's names, from each way in which a checkpoint says them.

NeMo 1 has names of its own, NeMo 2 and Megatron-Bridge save calls (``_target_`` and arguments), Megatron-LM
its command line. All become the fields of Megatron-core's ``TransformerConfig`` and ``GPTModel``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from irloom.ir.errors import CheckpointError

Fields = dict[str, Any]

KNOWN = re.compile(r"(nemo|megatron|nemo_[a-z]+|transformer_engine)\.[\w.]+")
"""What a model's ``_target_`` may name. It is compared, never imported."""

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "swiglu": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "squared_relu": "squared_relu",
    "openai_gelu": "gelu_tanh",
    "fast_gelu": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Functions by the last part of their path. Torch's ``_C._nn.gelu`` is exact, Megatron's others are not."""

_NEMO1_ACTIVATIONS = {
    "gelu": ("gelu", False),
    "openai-gelu": ("gelu_tanh", False),
    "approx-gelu": ("gelu_tanh", False),
    "squared-relu": ("squared_relu", False),
    "relu": ("relu", False),
    "swiglu": ("silu", True),
    "fast-swiglu": ("silu", True),
    "geglu": ("gelu_tanh", True),
    "fast-geglu": ("gelu_tanh", True),
    "reglu": ("relu", True),
    "fast-reglu": ("relu", True),
}


def nemo1_fields(document: Fields, path: Path) -> Fields:
    """Of ``model_config.yaml``."""
    inner = document.get("model")
    said: Fields = inner if isinstance(inner, dict) else document
    kind = str(said.get("target", ""))
    if "num_layers" not in said or "hidden_size" not in said:
        what = f" (it is a {kind.rpartition('.')[2]})" if kind else ""
        raise CheckpointError(
            f"{path}: model_config.yaml describes no language model{what}",
            hint="irloom reads NeMo's GPT models; speech models and others it does not",
        )
    _refuse_target(kind, path)
    name = str(said.get("activation", "gelu"))
    if name not in _NEMO1_ACTIVATIONS:
        raise _unknown_activation(name, path)
    activation, gated = _NEMO1_ACTIVATIONS[name]
    norm = str(said.get("normalization", "layernorm"))
    old = {
        "bias": ("add_bias_linear", True),
        "qkv_bias": ("add_qkv_bias", False),
        "rotary_percentage": ("rotary_percent", 1.0),
        "rotary_base": ("rotary_base", 10000),
        "position_embedding_type": ("position_embedding_type", "learned_absolute"),
        "share_embeddings_and_output_weights": ("share_embeddings_and_output_weights", True),
    }
    fields = {new: said.get(name, default) for name, (new, default) in old.items()}
    return {
        **said,
        **fields,
        "activation": _fused_gelu(activation, said),
        "gated_linear_unit": gated,
        "normalization": "RMSNorm" if norm == "rmsnorm" else "LayerNorm",
        "layernorm_zero_centered_gamma": bool(said.get("layernorm_zero_centered_gamma"))
        or norm == "layernorm1p",
        "seq_length": said.get("max_position_embeddings") or said.get("encoder_seq_length"),
        "rope_scaling": bool(said.get("scale_positional_embedding")),
        "family": kind.rpartition(".")[2],
        "scaled_embedding": said.get("apply_embedding_scaling", True),
    }


def nemo2_fields(model: Fields, path: Path) -> Fields:
    """Of the ``model`` call in ``context/model.yaml`` or ``context/io.json``."""
    config = model.get("config")
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path}: context describes no language model: it has no `config`",
            hint="irloom reads language models",
        )
    for call in (model, config):
        _refuse_target(str(call.get("_target_", "")), path)
    scaling = {"rope_scaling": True, "rope_scaling_factor": config.get("scale_factor", 8.0)}
    return {
        **config,
        **(scaling if config.get("old_context_len") else {}),
        "activation": _fused_gelu(_activation(config, path), config),
        "family": _last(config.get("_target_")) or _last(model.get("_target_")),
        "window_is_hf": True,
        "scaled_embedding": True,
    }


def bridge_fields(model: Fields, path: Path) -> Fields:
    """Of ``model`` in Megatron-Bridge's ``run_config.yaml``: flat, or with a part for the transformer."""
    inner = model.get("transformer")
    said = {**model, **inner} if isinstance(inner, dict) else model
    for call in (model, said):
        _refuse_target(str(call.get("_target_") or call.get("_builder_") or ""), path)
    return {
        **said,
        "activation": _fused_gelu(_activation(said, path), said),
        "family": _last(model.get("_target_")),
        "scaled_embedding": True,
    }


def megatron_fields(arguments: Fields, path: Path) -> Fields:
    """Of the command line that Megatron-LM keeps in its checkpoints."""
    gated = bool(arguments.get("swiglu") or arguments.get("gated_linear_unit"))
    known = "silu" if arguments.get("swiglu") else "squared_relu" if arguments.get("squared_relu") else ""
    known = known or ("quick_gelu" if arguments.get("quick_geglu") else "")
    grouped = arguments.get("group_query_attention")
    fields = {
        "activation": _fused_gelu(known or _activation(arguments, path), arguments),
        "gated_linear_unit": gated or bool(arguments.get("quick_geglu")),
        "layernorm_epsilon": arguments.get("norm_epsilon", arguments.get("layernorm_epsilon", 1e-5)),
        "layernorm_zero_centered_gamma": bool(arguments.get("apply_layernorm_1p")),
        "num_query_groups": arguments.get("num_query_groups")
        if grouped
        else arguments.get("num_attention_heads"),
        "num_moe_experts": arguments.get("num_experts"),
        "rope_scaling": bool(arguments.get("use_rope_scaling")),
        "seq_length": arguments.get("max_position_embeddings") or arguments.get("seq_length"),
        "share_embeddings_and_output_weights": not arguments.get("untie_embeddings_and_output_weights"),
        "seq_len_interpolation_factor": arguments.get("rotary_seq_len_interpolation_factor"),
        "family": "",
    }
    return {**arguments, **fields}


def _activation(said: Fields, path: Path) -> str:
    """The function's name; what is not known to be a function of that name is refused."""
    value = said.get("activation_func", said.get("activation"))
    if value is None:
        return "silu" if said.get("gated_linear_unit") else "gelu"
    name = value.get("_target_") if isinstance(value, dict) else value
    kind = getattr(value, "kind", name)  # a function in a pickle is an inert class of that name
    last = str(kind).rpartition(".")[2]
    if last not in _ACTIVATIONS or ("." in str(kind) and not re.match(r"(torch|nemo|megatron)\.", str(kind))):
        raise _unknown_activation(str(kind)[:80], path)
    return _ACTIVATIONS[last]


def _fused_gelu(activation: str, said: Fields) -> str:
    """Megatron's kernel that fuses bias and gelu computes the tanh form, whatever the config calls it."""
    fused = said.get("bias_activation_fusion", said.get("bias_gelu_fusion")) is True
    return "gelu_tanh" if activation == "gelu" and (fused or said.get("openai_gelu") is True) else activation


def _refuse_target(target: str, path: Path) -> None:
    if target and not KNOWN.fullmatch(target):
        raise CheckpointError(
            f"{path}: its config names the class `{target[:80]}`, which is none of NeMo's or Megatron's",
            hint="nothing was imported; classes are only compared with those that irloom knows",
        )


def _unknown_activation(name: str, path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: the activation `{name}` is not known",
        hint=f"irloom knows {', '.join(sorted({*_ACTIVATIONS, *_NEMO1_ACTIVATIONS}))}",
    )


def _last(target: Any) -> str:
    return str(target or "").rpartition(".")[2]
