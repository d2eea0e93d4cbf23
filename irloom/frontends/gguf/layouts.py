"""Tensors that llama.cpp stores in another layout than the library's, as weight expressions."""

from __future__ import annotations

import re
from typing import Any

from irloom.frontends.gguf.tensors import GGUFTensors
from irloom.ir.weights import Concat, Reshape, Slice, Tensor, Transpose, WeightExpr

_LAYER = re.compile(r"(?:.*\.)?(?:layers|h)\.(\d+)\.(.+)")
Dims = tuple[int, ...]


def expression(raw: GGUFTensors, model: Any, target: str, wanted: Dims) -> WeightExpr | None:
    """What makes the library's tensor ``target`` of dims ``wanted``; None where it is stored as it is."""
    found = _LAYER.fullmatch(target)
    if found is None:
        return None
    block, name = f"blk.{found[1]}", found[2]
    if model.config.model_type == "gpt_oss" and (made := _gpt_oss(block, name, wanted)) is not None:
        return made
    if name.endswith(("experts.gate_up_proj", "block_sparse_moe.input_linear.weight")):
        if f"{block}.ffn_gate_up_exps.weight" in raw.header.entries:
            return Tensor(f"{block}.ffn_gate_up_exps.weight")
        return Concat((Tensor(f"{block}.ffn_gate_exps.weight"), Tensor(f"{block}.ffn_up_exps.weight")), 1)
    if name.endswith(("experts.down_proj", "block_sparse_moe.output_linear.weight")):
        return Tensor(f"{block}.ffn_down_exps.weight")
    if name.endswith("block_sparse_moe.router.weight"):
        return Tensor(f"{block}.ffn_gate_inp.weight")
    if name.endswith("e_score_correction_bias"):
        return Reshape(Tensor(f"{block}.exp_probs_b.bias"), wanted)
    if name.endswith("kv_b_proj.weight") and f"{block}.attn_k_b.weight" in raw.header.entries:
        return _keys_and_values(block, wanted)
    if name.endswith("query_key_value.weight") and model.config.model_type == "falcon":
        return _falcon(f"{block}.attn_qkv.weight", model.config)
    return None


def _keys_and_values(block: str, wanted: Dims) -> WeightExpr:
    """The projection from a latent, stored apart: keys [heads, latent, n], values [heads, n, latent]."""
    parts = (Transpose(Tensor(f"{block}.attn_k_b.weight")), Tensor(f"{block}.attn_v_b.weight"))
    return Reshape(Concat(parts, 1), wanted)


def _gpt_oss(block: str, name: str, wanted: Dims) -> WeightExpr | None:
    """Experts [e, in, out] with gates and values side by side; llama.cpp has [e, out, in], and both apart."""
    if name.endswith("self_attn.sinks"):
        return Tensor(f"{block}.attn_sinks.weight")
    if name.endswith("experts.down_proj"):
        return Transpose(Tensor(f"{block}.ffn_down_exps.weight"))
    if name.endswith("experts.down_proj_bias"):
        return Tensor(f"{block}.ffn_down_exps.bias")
    kind = {"experts.gate_up_proj": "weight", "experts.gate_up_proj_bias": "bias"}.get(
        name.removeprefix("mlp.")
    )
    if kind is None:
        return None
    pair = [Tensor(f"{block}.ffn_{half}_exps.{kind}") for half in ("gate", "up")]
    columns = (*wanted[:-1], wanted[-1] // 2, 1)
    turned = pair if kind == "bias" else [Transpose(half) for half in pair]
    return Reshape(Concat(tuple(Reshape(half, columns) for half in turned), len(wanted)), wanted)


def _falcon(name: str, config: Any) -> WeightExpr | None:
    """By group of heads: its queries, a key, a value. llama.cpp has all queries, then all keys and values."""
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    groups = config.num_kv_heads if config.new_decoder_architecture or not config.multi_query else 1
    if groups == 1:
        return None
    each, parts, whole = heads // groups * size, list[WeightExpr](), Tensor(name)
    for g in range(groups):
        key = heads * size + g * size
        value = key + groups * size
        parts += [
            Slice(whole, 0, g * each, (g + 1) * each),
            Slice(whole, 0, key, key + size),
            Slice(whole, 0, value, value + size),
        ]
    return Concat(tuple(parts), 0)
