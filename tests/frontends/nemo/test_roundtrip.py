"""Layouts that Megatron-core does not write on a CPU: models renamed by hand come back equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig, MixtralConfig, NemotronHConfig

from irloom.frontends.hf.selfcheck import library_logits, randomized
from irloom.frontends.nemo import open_path
from tests.frontends.nemo.parity import library_model
from tests.frontends.nemo.plain import write_bridge

State = dict[str, torch.Tensor]
SMALL: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
SAID: dict[str, Any] = {
    "_target_": "megatron.bridge.models.gpt_provider.GPTModelProvider", "num_attention_heads": 4,
    "num_query_groups": 2, "kv_channels": 8, "normalization": "RMSNorm", "seq_length": 64,
    "position_embedding_type": "rope", "activation_func": "silu", "gated_linear_unit": True,
}  # fmt: skip


def fused(state: State, stem: str) -> torch.Tensor:
    """Queries, keys and values as Megatron interleaves them: two groups of two queries, a key, a value."""
    q, k, v = (state[f"{stem}.{x}_proj.weight"].reshape(2, -1, 8, 32) for x in "qkv")
    return torch.cat([q, k, v], 1).reshape(-1, 32)


def equal(path: Path, model: Any) -> Any:
    """Hold the checkpoint at ``path`` against ``model``: every weight, and logits. Gives the config found."""
    found = library_model(path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    ids = torch.arange(3, 14)
    with torch.inference_mode():
        assert torch.equal(library_logits(found, ids), library_logits(model, ids))
    return found.config


def decoder(state: State, layer: int, norms: dict[str, str]) -> State:
    """A layer of attention and a gated MLP in Megatron's names."""
    at, to = f"model.layers.{layer}", f"decoder.layers.{layer}"
    out = {
        f"{to}.self_attention.linear_qkv.weight": fused(state, f"{at}.self_attn"),
        f"{to}.self_attention.linear_proj.weight": state[f"{at}.self_attn.o_proj.weight"],
        f"{to}.mlp.linear_fc1.weight": torch.cat(
            [state[f"{at}.mlp.{x}_proj.weight"] for x in ("gate", "up")]
        ),
        f"{to}.mlp.linear_fc2.weight": state[f"{at}.mlp.down_proj.weight"],
    }
    return out | {f"{to}.{a}": state[f"{at}.{b}.weight"] for a, b in norms.items()}


def ends(state: State, *, tied: bool = False) -> State:
    out = {"embedding.word_embeddings.weight": state["model.embed_tokens.weight"]}
    out["decoder.final_layernorm.weight"] = state["model.norm.weight"]
    return out if tied else {**out, "output_layer.weight": state["lm_head.weight"]}


LLAMA_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm",
}


@pytest.fixture(scope="module")
def llama() -> Any:
    return randomized(LlamaConfig(**SMALL, num_hidden_layers=2, rms_norm_eps=1e-5))


def test_a_hybrid_stack_of_attention_and_mlps_is_a_decoder(llama, tmp_path):
    state = llama.state_dict()
    tensors = ends(state)
    for layer in range(2):
        for name, tensor in decoder(state, layer, LLAMA_NORMS).items():
            at = 2 * layer + (".mlp." in name)
            tensors[name.replace(f"layers.{layer}.", f"layers.{at}.")] = tensor
    tensors["decoder.final_norm.weight"] = tensors.pop("decoder.final_layernorm.weight")
    write_bridge(tmp_path, tensors, {**SAID, "hybrid_layer_pattern": "*-*-"})
    assert equal(tmp_path, llama).num_hidden_layers == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_models_element_is_the_tensors(llama, tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in llama.state_dict().items()}
    layers = [decoder(state, layer, LLAMA_NORMS) for layer in range(2)]
    write_bridge(tmp_path, {**ends(state), **layers[0], **layers[1]}, SAID)
    opened = open_path(tmp_path)
    assert opened.config().dtype == dtype
    assert torch.equal(opened.weights().read("lm_head.weight"), state["lm_head.weight"])


def test_rows_of_a_tensor_are_read_without_the_others(llama, tmp_path):
    state = llama.state_dict()
    layers = [decoder(state, layer, LLAMA_NORMS) for layer in range(2)]
    write_bridge(tmp_path, {**ends(state), **layers[0], **layers[1]}, SAID)
    weights = open_path(tmp_path).weights()
    for name in weights.names():
        assert torch.equal(torch.cat(list(weights.blocks(name))), weights.read(name))
        (part,) = weights.blocks(name, slice(3, 7))
        assert torch.equal(part, weights.read(name)[3:7])


def test_a_tensor_in_one_run_can_be_linked_to(llama, tmp_path):
    state = llama.state_dict()
    layers = [decoder(state, layer, LLAMA_NORMS) for layer in range(2)]
    write_bridge(tmp_path, {**ends(state), **layers[0], **layers[1]}, SAID)
    weights = open_path(tmp_path).weights()
    for name in ("lm_head.weight", "model.layers.1.mlp.up_proj.weight"):
        at = weights.stored(name)
        assert at is not None
        assert at.path.read_bytes()[at.offset : at.offset + at.nbytes] == state[name].numpy().tobytes()
    assert weights.stored("model.layers.0.self_attn.q_proj.weight") is None


def numbered(layer: int, expert: int, up: torch.Tensor, down: torch.Tensor) -> State:
    at = f"decoder.layers.{layer}.mlp.experts"
    return {f"{at}.linear_fc1.weight{expert}": up, f"{at}.linear_fc2.weight{expert}": down}


def local(layer: int, expert: int, up: torch.Tensor, down: torch.Tensor) -> State:
    at = f"decoder.layers.{layer}.mlp.experts.local_experts.{expert}"
    return {f"{at}.linear_fc1.weight": up, f"{at}.linear_fc2.weight": down}


def apart(layer: int, expert: int, up: torch.Tensor, down: torch.Tensor) -> State:
    at = f"decoder.layers.{layer}.mlp.experts.experts.{expert}"
    gate, value = up.chunk(2)
    return {
        f"{at}.linear_fc1.weight_w": gate.clone(),
        f"{at}.linear_fc1.weight_v": value.clone(),
        f"{at}.linear_fc2.weight": down,
    }


@pytest.mark.parametrize("layout", [numbered, local, apart])
def test_experts_may_be_laid_out_in_any_way(layout: Callable[..., State], tmp_path):
    model = randomized(
        MixtralConfig(**SMALL, num_hidden_layers=2, num_local_experts=3, num_experts_per_tok=2)
    )
    state, tensors = model.state_dict(), ends(model.state_dict())
    for layer in range(2):
        at, to = f"model.layers.{layer}", f"decoder.layers.{layer}"
        for expert in range(3):
            up = state[f"{at}.mlp.experts.gate_up_proj"][expert].clone()
            tensors |= layout(layer, expert, up, state[f"{at}.mlp.experts.down_proj"][expert].clone())
        tensors |= {
            f"{to}.mlp.router.weight": state[f"{at}.mlp.gate.weight"],
            f"{to}.pre_mlp_layernorm.weight": state[f"{at}.post_attention_layernorm.weight"],
            f"{to}.input_layernorm.weight": state[f"{at}.input_layernorm.weight"],
            f"{to}.self_attention.linear_qkv.weight": fused(state, f"{at}.self_attn"),
            f"{to}.self_attention.linear_proj.weight": state[f"{at}.self_attn.o_proj.weight"],
        }
    write_bridge(tmp_path, tensors, {**SAID, "num_moe_experts": 3, "moe_router_topk": 2, "rotary_base": 1e6})
    equal(tmp_path, model)


def test_gemma2_has_norms_after_its_products_softcaps_and_a_window(tmp_path):
    model = randomized(Gemma2Config(**SMALL, num_hidden_layers=2, sliding_window=8, query_pre_attn_scalar=16))
    state = model.state_dict()
    norms = {
        "self_attention.linear_qkv.layer_norm_weight": "input_layernorm",
        "self_attention.linear_proj.post_layernorm.weight": "post_attention_layernorm",
        "mlp.linear_fc1.layer_norm_weight": "pre_feedforward_layernorm",
        "mlp.linear_fc2.post_layernorm.weight": "post_feedforward_layernorm",
    }
    tensors = {**ends(state, tied=True), **decoder(state, 0, norms), **decoder(state, 1, norms)}
    said = {"activation_func": "fast_gelu", "layernorm_zero_centered_gamma": True, "layernorm_epsilon": 1e-6}
    said |= {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    write_bridge(tmp_path, tensors, {**SAID, **said, "window_size": [7, 0]})
    found = equal(tmp_path, model)
    assert (found.sliding_window, found.query_pre_attn_scalar) == (8, 16)


HYBRID: dict[str, Any] = {
    **SMALL, "mamba_num_heads": 8, "mamba_head_dim": 4, "n_groups": 2, "ssm_state_size": 16, "conv_kernel": 4,
    "expand": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 40, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5,
}  # fmt: skip
SAID_HYBRID: dict[str, Any] = {
    **SAID, "_target_": "megatron.bridge.models.hybrid.hybrid_provider.HybridModelProvider",
    "activation_func": {"_target_": "megatron.core.activations.squared_relu"}, "gated_linear_unit": False,
    "position_embedding_type": "none", "mamba_num_groups": 2, "mamba_state_dim": 16, "num_moe_experts": 4,
    "moe_router_topk": 2, "moe_router_score_function": "sigmoid", "moe_router_topk_scaling_factor": 2.5,
    "moe_shared_expert_intermediate_size": 40,
}  # fmt: skip


def mamba(state: State, at: str, to: str) -> State:
    """A Mamba layer, its joint tensors in the parts in which Megatron saves them."""
    sizes = {"z": 32, "x": 32, "B": 32, "C": 32, "dt": 8}
    parts = state[f"{at}.mixer.in_proj.weight"].split(list(sizes.values()))
    out = {f"{to}.mixer.in_proj.weight.{n}": p.clone() for n, p in zip(sizes, parts, strict=True)}
    for kind in ("weight", "bias"):
        for name, part in zip("xBC", state[f"{at}.mixer.conv1d.{kind}"].split(32), strict=True):
            out[f"{to}.mixer.conv1d.{kind}.{name}"] = part.clone()
    for name in ("A_log", "D", "dt_bias", "norm.weight", "out_proj.weight"):
        out[f"{to}.mixer.{name}"] = state[f"{at}.mixer.{name}"]
    return out | {f"{to}.mixer.in_proj.layer_norm_weight": state[f"{at}.norm.weight"]}


def experts(state: State, at: str, to: str) -> State:
    mixer, mlp = f"{at}.mixer", f"{to}.mlp"
    return {
        f"{to}.pre_mlp_layernorm.weight": state[f"{at}.norm.weight"],
        f"{mlp}.router.weight": state[f"{mixer}.gate.weight"],
        f"{mlp}.router.expert_bias": state[f"{mixer}.gate.e_score_correction_bias"],
        f"{mlp}.experts.experts.linear_fc1.weight": state[f"{mixer}.experts.up_proj"],
        f"{mlp}.experts.experts.linear_fc2.weight": state[f"{mixer}.experts.down_proj"],
        f"{mlp}.shared_experts.linear_fc1.weight": state[f"{mixer}.shared_experts.up_proj.weight"],
        f"{mlp}.shared_experts.linear_fc2.weight": state[f"{mixer}.shared_experts.down_proj.weight"],
    }


def attention(state: State, at: str, to: str) -> State:
    return {
        f"{to}.self_attention.linear_qkv.layer_norm_weight": state[f"{at}.norm.weight"],
        f"{to}.self_attention.linear_qkv.weight": fused(state, f"{at}.mixer"),
        f"{to}.self_attention.linear_proj.weight": state[f"{at}.mixer.o_proj.weight"],
    }


def mlp(state: State, at: str, to: str) -> State:
    return {
        f"{to}.mlp.linear_fc1.layer_norm_weight": state[f"{at}.norm.weight"],
        f"{to}.mlp.linear_fc1.weight": state[f"{at}.mixer.up_proj.weight"],
        f"{to}.mlp.linear_fc2.weight": state[f"{at}.mixer.down_proj.weight"],
    }


@pytest.mark.parametrize("pattern", ["M*ME-", "M-M*", "MMM"])
def test_a_hybrid_of_mamba_attention_mlps_and_experts_is_nemotron_h(pattern, tmp_path):
    own: dict[str, Any] = {**HYBRID, "hybrid_override_pattern": pattern, "tie_word_embeddings": False}
    model = randomized(NemotronHConfig(**own))
    state = model.state_dict()
    tensors = {
        "embedding.word_embeddings.weight": state["model.embeddings.weight"],
        "decoder.final_norm.weight": state["model.norm_f.weight"],
        "output_layer.weight": state["lm_head.weight"],
    }
    kinds = {"M": mamba, "*": attention, "-": mlp, "E": experts}
    for i, letter in enumerate(pattern):
        tensors |= kinds[letter](state, f"model.layers.{i}", f"decoder.layers.{i}")
    said = {**SAID_HYBRID, "hybrid_layer_pattern": "|".join(pattern) + "/mtp"}
    if "E" not in pattern:
        del said["num_moe_experts"]
    write_bridge(tmp_path, tensors, said)
    assert equal(tmp_path, model).model_type == "nemotron_h"
