"""What NeMo 2's config classes say when a checkpoint does not.

Checkpoints of before NeMo 2.0.0 have no ``model.yaml``, and their ``io.json`` holds only the arguments that
were given. What the classes would have filled in is here, by class name; a size is part of no class here,
because tensors have it.
"""

from __future__ import annotations

import re

from irloom.frontends.nemo.fields import Fields

_GELU, _SILU = ({"_target_": f"torch.nn.functional.{name}"} for name in ("gelu", "silu"))
_GPT: Fields = {
    "normalization": "LayerNorm",
    "layernorm_epsilon": 1e-5,
    "activation_func": _GELU,
    "add_bias_linear": True,
    "position_embedding_type": "learned_absolute",
    "seq_length": 1024,
}
_LLAMA: Fields = {
    **_GPT,
    "normalization": "RMSNorm",
    "activation_func": _SILU,
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "position_embedding_type": "rope",
    "seq_length": 4096,
}
_QWEN: Fields = {**_LLAMA, "layernorm_epsilon": 1e-6, "rotary_base": 1000000.0}
_CLASSES: dict[str, Fields] = {
    "LlamaConfig": _LLAMA,
    "Llama2Config": _LLAMA,
    "Llama3Config": {**_LLAMA, "rotary_base": 500000, "num_query_groups": 8, "seq_length": 8192},
    "Llama31Config": {
        **_LLAMA,
        "rotary_base": 500000,
        "num_query_groups": 8,
        "seq_length": 131072,
        "scale_factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "old_context_len": 8192,
    },
    "MistralConfig": {**_LLAMA, "num_query_groups": 8, "seq_length": 32768},
    "MixtralConfig": {**_LLAMA, "rotary_base": 1000000.0, "num_query_groups": 8, "moe_router_topk": 2},
    "Qwen2Config": _QWEN,
    "Qwen3Config": _QWEN,
    "Qwen3MoEConfig": {**_QWEN, "moe_router_topk": 8},
    "GemmaConfig": {
        **_LLAMA,
        "activation_func": {"_target_": "nemo.collections.llm.fn.activation.openai_gelu"},
        "layernorm_zero_centered_gamma": True,
        "layernorm_epsilon": 1e-6,
        "kv_channels": 256,
        "seq_length": 8192,
    },
    "NemotronConfig": {
        **_GPT,
        "activation_func": {"_target_": "nemo.collections.llm.fn.activation.squared_relu"},
        "layernorm_zero_centered_gamma": True,
        "add_bias_linear": False,
        "position_embedding_type": "rope",
        "rotary_percent": 0.5,
        "seq_length": 4096,
    },
    "Starcoder2Config": {**_GPT, "position_embedding_type": "rope", "seq_length": 16384},
}


def with_defaults(model: Fields) -> Fields:
    """A ``model`` call whose config also says what its class does."""
    config = model.get("config")
    if not isinstance(config, dict):
        return model
    name = str(config.get("_target_", "")).rpartition(".")[2]
    name = re.sub(r"(?<=Config)_?\d+(x\d+)?(p\d+)?[BbMm].*$", "", name)
    return {**model, "config": {**_GPT, **_CLASSES.get(name, {}), **config}}
