"""Tiny GGUF files of many architectures, with tensors laid out as llama.cpp's converter leaves them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch

PAIRED = {"llama", "granite"}
"""Architectures whose rotary rows are stored pair by pair."""


def write_model(path: Path, arch: str, model: Any, facts: dict[str, Any]) -> None:
    """Write ``model`` as a file of ``arch``; ``facts`` are added to the metadata that all models have."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {**common(model.config), **facts}.items():
        add_fact(writer, f"{arch}.{key}", value)
    writer.add_token_list([f"t{i}" for i in range(model.config.vocab_size)])
    for key in ("bos", "eos"):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", getattr(model.config, f"{key}_token_id"))
    for name, tensor in stored(arch, model):
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def common(config: Any) -> dict[str, Any]:
    said = {
        "context_length": "max_position_embeddings", "block_count": "num_hidden_layers",
        "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps", "attention.layer_norm_epsilon": "norm_epsilon",
        "expert_used_count": "num_experts_per_tok",
    }  # fmt: skip
    found = {key: getattr(config, name) for key, name in said.items() if hasattr(config, name)}
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    return {**found, "rope.freq_base": float(rope["rope_theta"])}


def add_fact(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds[type(value)](key, value)


def stored(arch: str, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of the file, from those of the library's model."""
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        made = list(special(arch, model.config, name, tensor))
        if made:
            yield from made
        else:
            found = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert found, name
            yield found, plain(arch, model.config, name, tensor)


def plain(arch: str, config: Any, name: str, x: torch.Tensor) -> torch.Tensor:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    if arch in PAIRED and (count := heads.get(name.split(".")[-2])):
        return x.unflatten(0, (count, 2, -1)).transpose(1, 2).reshape(x.shape)
    return x + 1 if arch == "gemma2" and name.endswith("norm.weight") else x


def special(arch: str, config: Any, name: str, x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that are stored apart, joined or turned."""
    found = re.search(r"layers\.(\d+)\.", name)
    block = f"blk.{found[1]}" if found else ""
    leaf = name.rpartition(".")[2]
    if arch == "gpt-oss" and leaf.startswith("gate_up_proj"):
        kind = "bias" if leaf.endswith("bias") else "weight"
        halves = x if kind == "bias" else x.transpose(1, 2)
        for i, half in enumerate(("gate", "up")):
            yield f"{block}.ffn_{half}_exps.{kind}", halves[:, i::2]
    elif arch == "gpt-oss" and leaf.startswith("down_proj"):
        yield (
            (f"{block}.ffn_down_exps.bias", x)
            if leaf.endswith("bias")
            else (f"{block}.ffn_down_exps.weight", x.transpose(1, 2))
        )
    elif leaf == "sinks":
        yield f"{block}.attn_sinks.weight", x
    elif leaf == "gate_up_proj":
        for half, part in zip(("gate", "up"), x.chunk(2, 1), strict=True):
            yield f"{block}.ffn_{half}_exps.weight", part
    elif leaf == "down_proj":
        yield f"{block}.ffn_down_exps.weight", x
    elif leaf == "e_score_correction_bias":
        yield f"{block}.exp_probs_b.bias", x
    elif name.endswith("shared_expert_gate.weight"):
        yield f"{block}.ffn_gate_inp_shexp.weight", x[0]
    elif name.endswith("kv_b_proj.weight"):
        parts = x.unflatten(0, (config.num_attention_heads, -1))
        yield f"{block}.attn_k_b.weight", parts[:, : config.qk_nope_head_dim].transpose(1, 2)
        yield f"{block}.attn_v_b.weight", parts[:, config.qk_nope_head_dim :]
    elif arch == "falcon" and name.endswith("query_key_value.weight"):
        size = config.hidden_size // config.num_attention_heads
        groups = x.unflatten(0, (config.num_kv_heads, -1, size))
        parts = (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])
        found = re.search(r"h\.(\d+)\.", name)
        assert found
        yield f"blk.{found[1]}.attn_qkv.weight", torch.cat([p.flatten(0, 2) for p in parts])
