"""Tiny models of Megatron-core on the CPU: the reference that conversions are held against.

Megatron-core expects CUDA here and there; ``on_cpu`` replaces those places. It changes torch for the whole
process, so this runs in a process of its own, see make.py.
"""

from __future__ import annotations

import contextlib
import queue
import tempfile
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch

VOCAB, PADDED, LENGTH = 100, 128, 64


@dataclass(frozen=True)
class Recipe:
    """A family: fields of its ``TransformerConfig`` and of ``GPTModel``, and what checkpoints call it."""

    config: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    activation: str = "silu"
    nemo2: str = "llama.Llama"
    zero_centered: bool = False
    scaled_embedding: bool = False


BASE: dict[str, Any] = {
    "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 8,
    "num_query_groups": 2, "kv_channels": 16, "normalization": "RMSNorm", "gated_linear_unit": True,
    "add_bias_linear": False, "layernorm_epsilon": 1e-5,
}  # fmt: skip
ROPE: dict[str, Any] = {
    "position_embedding_type": "rope", "rotary_base": 10000, "rotary_percent": 1.0,
    "share_embeddings_and_output_weights": False,
}  # fmt: skip
MOE: dict[str, Any] = {
    "num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 48,
    "moe_router_load_balancing_type": "none", "moe_token_dispatcher_type": "allgather",
    "moe_grouped_gemm": False,
}  # fmt: skip
MLA: dict[str, Any] = {
    **MOE, "num_layers": 3, "num_query_groups": 8, "multi_latent_attention": True, "q_lora_rank": 24,
    "kv_lora_rank": 32, "qk_head_dim": 16, "qk_pos_emb_head_dim": 8, "v_head_dim": 12, "qk_layernorm": True,
    "moe_layer_freq": [0, 1, 1], "moe_shared_expert_intermediate_size": 96, "num_moe_experts": 8,
    "moe_router_topk": 4, "layernorm_epsilon": 1e-6,
}  # fmt: skip
PLAIN: dict[str, Any] = {"normalization": "LayerNorm", "gated_linear_unit": False}
BIASED: dict[str, Any] = {**PLAIN, "add_bias_linear": True, "kv_channels": 8}
TIED: dict[str, Any] = {"share_embeddings_and_output_weights": True}
LEARNED: dict[str, Any] = {**TIED, "position_embedding_type": "learned_absolute"}

FAMILIES: dict[str, Recipe] = {
    "llama": Recipe(),
    "llama31": Recipe(
        model={"rotary_base": 500000, "rope_scaling": True, "rope_scaling_factor": 8.0},
        nemo2="llama.Llama31",
    ),
    "mistral": Recipe({"window_size": (7, 0)}, nemo2="mistral.Mistral"),
    "qwen2": Recipe({"add_qkv_bias": True, "layernorm_epsilon": 1e-6}, TIED, nemo2="qwen2.Qwen2"),
    "qwen3": Recipe(
        {"qk_layernorm": True, "layernorm_epsilon": 1e-6}, {"rotary_base": 1000000}, nemo2="qwen3.Qwen3"
    ),
    "phi3": Recipe(model={"rotary_percent": 0.5}, nemo2="phi3mini.Phi3"),
    "mixtral": Recipe(MOE, nemo2="mixtral.Mixtral"),
    "qwen2_moe": Recipe(
        {
            **MOE,
            "add_qkv_bias": True,
            "moe_shared_expert_intermediate_size": 64,
            "moe_shared_expert_gate": True,
        },
        nemo2="qwen2.Qwen2MoE",
    ),
    "qwen3_moe": Recipe(
        {**MOE, "qk_layernorm": True, "moe_router_pre_softmax": True, "layernorm_epsilon": 1e-6},
        nemo2="qwen3.Qwen3MoE",
    ),
    "gemma": Recipe(
        {"layernorm_epsilon": 1e-6},
        TIED,
        activation="gelu_tanh",
        nemo2="gemma.Gemma",
        zero_centered=True,
        scaled_embedding=True,
    ),
    "nemotron": Recipe(
        PLAIN,
        {"rotary_percent": 0.5},
        activation="squared_relu",
        nemo2="nemotron.Nemotron",
        zero_centered=True,
    ),
    "starcoder2": Recipe(BIASED, {"rotary_base": 100000}, activation="gelu", nemo2="starcoder2.Starcoder2"),
    "stablelm": Recipe({"normalization": "LayerNorm", "kv_channels": 8}, nemo2="base.GPT"),
    "gpt2": Recipe({**BIASED, "num_query_groups": 8}, LEARNED, activation="gelu", nemo2="base.GPT"),
    "gpt_bigcode": Recipe(
        {**BIASED, "num_query_groups": 1}, LEARNED, activation="gelu_tanh", nemo2="starcoder.Starcoder"
    ),
    "deepseek_v3": Recipe(
        {
            **MLA,
            "moe_router_score_function": "sigmoid",
            "moe_router_enable_expert_bias": True,
            "moe_router_topk_scaling_factor": 2.5,
            "moe_router_num_groups": 4,
            "moe_router_group_topk": 2,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 16,
            "rotary_scaling_factor": 4,
        },
        nemo2="deepseek.DeepSeekV3",
    ),
    "deepseek_v2": Recipe(
        {**MLA, "q_lora_rank": None, "moe_router_pre_softmax": True, "rope_type": "rope"},
        nemo2="deepseek.DeepSeekV2",
    ),
}


def activation(name: str) -> Any:
    from megatron.core.activations import squared_relu

    functions = torch.nn.functional
    return {
        "silu": functions.silu,
        "gelu": functions.gelu,
        "gelu_tanh": lambda x: functions.gelu(x, approximate="tanh"),
        "squared_relu": squared_relu,
    }[name]


def on_cpu() -> None:
    """Replace what needs CUDA, Apex or Transformer Engine, and start a process group of one."""
    warnings.filterwarnings("ignore")
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda *a, **k: None
    from megatron.core import parallel_state
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.fusions import fused_softmax
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer import multi_latent_attention
    from megatron.core.transformer.moe import moe_utils

    tracker: Any = random.CudaRNGStatesTracker
    tracker.fork = lambda self, name=None: contextlib.nullcontext()
    multi_latent_attention.HAVE_TE = False
    fused_softmax.get_sliding_window_causal_mask = _window
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None
    filesystem_async._get_write_results_queue = queue.Queue
    writer: Any = filesystem_async.FileSystemWriterAsync
    writer.write_preloaded_data_multiproc = staticmethod(_write_here)
    with tempfile.NamedTemporaryFile(delete=False) as file:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{file.name}.group", rank=0, world_size=1
        )
    parallel_state.initialize_model_parallel()


def _window(queries: int, keys: int, window: tuple[int, int]) -> torch.Tensor:
    """Megatron's own, but for the device that it names: True where a key is not seen."""
    seen = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries - window[0])
    return ~seen.tril(keys - queries + window[1])


def _write_here(transforms: Any, msc: Any, rank: int, buckets: Any, results: Any) -> None:
    """Megatron's writer forks a process a file; a fork that dies leaves its parent waiting for ever."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    done = {}
    for i, bucket in enumerate(buckets):
        answers: Any = queue.Queue()
        counts: Any = queue.Queue()
        counts.put(i)
        FileSystemWriterAsync.write_preloaded_data(transforms, i, bucket, answers, counts, False)
        index, done[i] = answers.get()
        if isinstance(done[i], Exception):
            raise done[i]
        assert index == i
    results.put(done)


def build(name: str) -> tuple[Any, Any, dict[str, Any]]:
    """A model with norms and biases that are not trivial, its config, and what GPTModel was given."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import (
        get_gpt_decoder_block_spec,
        get_gpt_layer_local_spec,
    )
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.transformer_config import MLATransformerConfig

    recipe = FAMILIES[name]
    fields, given = {**BASE, **recipe.config}, {**ROPE, **recipe.model}
    kind = MLATransformerConfig if fields.get("multi_latent_attention") else TransformerConfig
    off = dict.fromkeys(
        ("bias_activation_fusion", "bias_dropout_fusion", "masked_softmax_fusion", "apply_rope_fusion",
         "gradient_accumulation_fusion", "persist_layer_norm"),
        False,
    )  # fmt: skip
    config = kind(
        **fields, **off, activation_func=activation(recipe.activation), use_cpu_initialization=True,
        hidden_dropout=0.0, attention_dropout=0.0, init_method_std=0.1,
    )  # fmt: skip
    if isinstance(fields.get("moe_layer_freq"), list):
        spec: Any = get_gpt_decoder_block_spec(config, use_transformer_engine=False)
        for layer in spec.layer_specs:
            layer.submodules.self_attention.submodules.core_attention = LatentAttention
    else:
        spec = get_gpt_layer_local_spec(
            num_experts=fields.get("num_moe_experts"),
            moe_grouped_gemm=False,
            qk_layernorm=fields.get("qk_layernorm", False),
            normalization=config.normalization,
        )
    with torch.random.fork_rng():
        torch.random.manual_seed(1234)
        model = GPTModel(config, spec, vocab_size=PADDED, max_sequence_length=LENGTH, **given).eval()
        with torch.no_grad():
            for path, parameter in [*model.named_parameters(), *model.named_buffers()]:
                if "norm" in path and path.endswith("weight"):
                    parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
                elif path.endswith("bias"):
                    parameter.copy_(0.1 * torch.randn_like(parameter))
    if recipe.scaled_embedding:
        model.embedding.register_forward_hook(lambda module, given, out: out * config.hidden_size**0.5)
    return model, config, given


class LatentAttention(torch.nn.Module):
    """Attention whose values are narrower than its keys, which Megatron leaves to Transformer Engine."""

    def __init__(self, config: Any, *args: Any, softmax_scale: float, **kwargs: Any) -> None:
        super().__init__()
        self.scale = softmax_scale

    def forward(self, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        scores = torch.einsum("sbhd,tbhd->bhst", query, key) * self.scale
        weights = scores.masked_fill(attention_mask, float("-inf")).softmax(-1)
        return torch.einsum("bhst,tbhd->sbhd", weights, value).flatten(2)


@torch.no_grad()
def reference(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sequences of tokens i64[2, 12], and Megatron's logits f32[2, 12, PADDED]."""
    ids = torch.randint(0, VOCAB, (2, 12), generator=torch.Generator().manual_seed(7))
    positions = torch.arange(12)[None].expand(2, -1)
    mask = torch.triu(torch.ones(12, 12, dtype=torch.bool), 1)[None, None]
    return ids, model(ids, positions, mask).float()
