"""Configs of published models, and the tensors that their checkpoints have. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synthetic import Tensors, write_model

COMMON = {"dtype": "bfloat16", "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "head_dim": 128}
LLAMA_8B = COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
QWEN3_06B = COMMON | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
}
QWEN3_30B = QWEN3_06B | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": LLAMA_8B,
    "Qwen3-0.6B": QWEN3_06B,
    "Qwen3-30B-A3B": QWEN3_30B,
}


def checkpoint(name: str, folder: Path) -> Path:
    """The checkpoint of a shape below ``folder``, with random weights; written unless it is there."""
    made = folder / name
    if not (made / "model.safetensors.index.json").is_file():
        write_model(made, SHAPES[name], tensors(SHAPES[name]))
    return made


def tensors(config: dict[str, Any]) -> Tensors:
    """Every tensor of a checkpoint, by the names that transformers gives."""
    embedding = (config["vocab_size"], config["hidden_size"])
    out: Tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": embedding[1:]}
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = embedding
    for i in range(config["num_hidden_layers"]):
        out |= {f"model.layers.{i}.{name}": dims for name, dims in _layer(config)}
    return out


def _layer(c: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    h, d = c["hidden_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    yield "input_layernorm.weight", (h,)
    yield "post_attention_layernorm.weight", (h,)
    for name, dims in {"q": (q, h), "k": (kv, h), "v": (kv, h), "o": (h, q)}.items():
        yield f"self_attn.{name}_proj.weight", dims
    if c["model_type"].startswith("qwen3"):
        yield from ((f"self_attn.{name}_norm.weight", (d,)) for name in "qk")
    if experts := c.get("num_experts"):
        yield "mlp.gate.weight", (experts, h)
        for e in range(experts):
            yield from _mlp(f"mlp.experts.{e}", h, c["moe_intermediate_size"])
    else:
        yield from _mlp("mlp", h, c["intermediate_size"])


def _mlp(at: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{at}.gate_proj.weight", (inner, hidden)
    yield f"{at}.up_proj.weight", (inner, hidden)
    yield f"{at}.down_proj.weight", (hidden, inner)
