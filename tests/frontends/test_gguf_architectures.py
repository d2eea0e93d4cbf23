"""Architectures of GGUF files: the library's config to the last field, and its tensors to the bit."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers

from irloom.frontends.gguf import open_checkpoint, read_config, read_header
from irloom.frontends.gguf.architectures import ARCHITECTURES
from irloom.frontends.gguf.frontend import Gguf
from irloom.frontends.hf.skeleton import skeleton
from irloom.ir.errors import CheckpointError
from tests.frontends.gguf_files import write_model

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 5000.0}
SHORT, LONG = [1.0 + i / 8 for i in range(8)], [2.0 + i / 4 for i in range(8)]
MIXED: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT: dict[str, Any] = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 24, "kv_lora_rank": 32, "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 24, "v_head_dim": 20, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 2.5, "norm_topk_prob": True, "head_dim": 16,
}  # fmt: skip
FACTS: dict[str, Any] = {
    "expert_count": 4, "expert_feed_forward_length": 32, "expert_shared_count": 1,
    "leading_dense_block_count": 1, "attention.q_lora_rank": 24, "attention.kv_lora_rank": 32,
    "attention.head_count_kv": 1, "attention.key_length": 48, "attention.value_length": 32,
    "attention.key_length_mla": 40, "attention.value_length_mla": 20, "rope.dimension_count": 16,
    "expert_group_count": 1, "expert_group_used_count": 1, "expert_weights_scale": 2.5,
    "expert_weights_norm": True,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "mixtral": ("llama", "Mixtral", {"num_local_experts": 4, "head_dim": 16}, {"expert_count": 4}),
    "qwen2 moe": (
        "qwen2moe", "Qwen2Moe", {**MIXED, "shared_expert_intermediate_size": 48},
        {"expert_count": 4, "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48},
    ),
    "gemma 2": (
        "gemma2", "Gemma2",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8, "tie_word_embeddings": True,
         "attn_logit_softcapping": 30.0, "final_logit_softcapping": 20.0},
        {"attention.key_length": 32, "attention.sliding_window": 8, "attn_logit_softcapping": 30.0,
         "final_logit_softcapping": 20.0},
    ),
    "granite": (
        "granite", "Granite",
        {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.25,
         "attention_multiplier": 0.125},
        {"embedding_scale": 12.0, "logit_scale": 8.0, "residual_scale": 0.25, "attention.scale": 0.125},
    ),
    "starcoder 2": ("starcoder2", "Starcoder2", {"sliding_window": None}, {}),
    "phi 3, half of each head rotating": (
        "phi3", "Phi3", {"sliding_window": None, "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
        {"rope.dimension_count": 8, "rope.scaling.original_context_length": 4096},
    ),
    "deepseek v3": (
        "deepseek2", "DeepseekV3",
        {**LATENT, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 1.0,
        }},
        {**FACTS, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
         "rope.scaling.original_context_length": 64, "rope.scaling.yarn_beta_fast": 32.0,
         "rope.scaling.yarn_beta_slow": 1.0, "rope.scaling.yarn_log_multiplier": 0.1},
    ),
    "gpt oss": (
        "gpt-oss", "GptOss",
        {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
         "rope_parameters": {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0,
                             "beta_slow": 1.0, "original_max_position_embeddings": 4096, "truncate": False}},
        {"expert_count": 4, "attention.key_length": 32, "attention.sliding_window": 8,
         "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0,
         "rope.scaling.original_context_length": 4096, "rope.scaling.yarn_beta_fast": 32.0,
         "rope.scaling.yarn_beta_slow": 1.0},
    ),
}  # fmt: skip
"""llama.cpp's name, the library's, what differs from ``SIZES``, and how the file says so."""

NOT_SAID = {"transformers_version", "architectures", "dtype", "name_or_path", "_name_or_path"}


def build(kind: str, extra: dict[str, Any]) -> Any:
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, "rope_parameters": dict(ROPE), **extra})
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(2)
        model = getattr(transformers, f"{kind}ForCausalLM")._from_config(config)
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data.normal_()
    return model


def opened(path: Path) -> tuple[Any, Any]:
    header = read_header(path)
    config = read_config(header)
    return config, open_checkpoint(header, skeleton(config, torch.float32))


@pytest.mark.parametrize("name", MODELS)
def test_a_file_is_the_model_it_was_made_of(tmp_path, name):
    arch, kind, extra, facts = MODELS[name]
    model = build(kind, extra)
    write_model(tmp_path / "m.gguf", arch, model, facts)
    config, checkpoint = opened(tmp_path / "m.gguf")
    assert type(config) is type(model.config)
    found, wanted = config.to_dict(), model.config.to_dict()
    for field in wanted.keys() - NOT_SAID:
        assert found[field] == wanted[field], field
    for tensor, values in model.state_dict().items():
        near = 1e-6 if arch == "gemma2" else 0.0  # norms are stored plus one
        torch.testing.assert_close(checkpoint.read(tensor), values, rtol=0, atol=near, msg=tensor)


def test_falcons_queries_keys_and_values_are_sorted_by_group(tmp_path):
    extra = {
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "intermediate_size": 256,
        "tie_word_embeddings": True,
    }
    model = build("Falcon", {**extra, "bias": False, "alibi": False})
    facts = {"attention.head_count_kv": 2, "attention.layer_norm_epsilon": 1e-5}
    write_model(tmp_path / "m.gguf", "falcon", model, facts)
    _, checkpoint = opened(tmp_path / "m.gguf")
    for name, values in model.state_dict().items():
        assert torch.equal(checkpoint.read(name), values), name


def test_longrope_comes_with_its_factors_and_ends_where_they_would_change(tmp_path):
    model = build("Phi3", {"sliding_window": None})
    facts = {"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.25}
    write_model(tmp_path / "plain.gguf", "phi3", model, facts)
    with_tensors(tmp_path, {"rope_factors_short.weight": SHORT, "rope_factors_long.weight": LONG})
    config, checkpoint = opened(tmp_path / "more.gguf")
    rope = config.rope_parameters
    assert (rope["rope_type"], rope["short_factor"], rope["long_factor"]) == ("longrope", SHORT, LONG)
    assert (rope["factor"], rope["attention_factor"], rope["original_max_position_embeddings"]) == (
        4,
        1.25,
        64,
    )
    assert set(checkpoint.names()) == set(model.state_dict())
    assert Gguf().facts(tmp_path / "more.gguf").max_context == 64


@pytest.mark.parametrize(("original", "factor", "base"), [(8192, 8.0, 5e5), (64, 32.0, 1e4)])
def test_llama_3s_scaling_is_found_in_its_factors(tmp_path, original, factor, base):
    rope = {
        "rope_type": "llama3", "rope_theta": base, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": original,
    }  # fmt: skip
    model = build("Llama", {"rope_parameters": rope})
    plain = 1 / base ** (torch.arange(8) / 8)
    write_model(tmp_path / "plain.gguf", "llama", model, {})
    kind = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding
    factors = plain / kind(model.config).inv_freq
    with_tensors(tmp_path, {"rope_freqs.weight": factors.tolist()})
    config, _ = opened(tmp_path / "more.gguf")
    assert config.rope_parameters == rope


def with_tensors(folder: Path, tensors: dict[str, list[float]]) -> None:
    """Copy plain.gguf to more.gguf with further tensors."""
    reader = gguf.GGUFReader(folder / "plain.gguf")
    writer = gguf.GGUFWriter(folder / "more.gguf", reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    for name, values in tensors.items():
        writer.add_tensor(name, torch.tensor(values).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_factors_that_are_no_scaling_of_llama_3s_are_refused(tmp_path):
    write_model(tmp_path / "plain.gguf", "llama", build("Llama", {}), {})
    with_tensors(tmp_path, {"rope_freqs.weight": [1.0, 3.0, 2.0, 5.0, 1.0, 4.0, 2.0, 8.0]})
    with pytest.raises(CheckpointError, match=r"does not hold Llama 3\.1's factors"):
        opened(tmp_path / "more.gguf")


def test_a_number_that_the_model_has_no_place_for_is_refused(tmp_path):
    write_model(tmp_path / "m.gguf", "llama", build("Llama", {}), {"logit_scale": 0.5})
    with pytest.raises(CheckpointError) as refused:
        opened(tmp_path / "m.gguf")
    assert str(refused.value) == (
        f"{tmp_path}/m.gguf: `logit_scale` is 0.5, and the library's class has no place for it\n"
        "hint: use the model's safetensors checkpoint"
    )


def test_metadata_that_is_no_number_is_refused(tmp_path):
    write_model(tmp_path / "m.gguf", "llama", build("Llama", {}), {"expert_count": "many"})
    with pytest.raises(CheckpointError, match=r"`llama\.expert_count` is 'many', not a number"):
        opened(tmp_path / "m.gguf")


def test_every_architecture_has_names_in_the_package_and_a_class_in_the_library():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    assert set(ARCHITECTURES) <= set(gguf.MODEL_ARCH_NAMES.values())
    kinds = {kind for known in ARCHITECTURES.values() for kind in (known.model_type, known.moe) if kind}
    assert {kind for kind in kinds if kind not in CONFIG_MAPPING} == set()


def test_a_tokenizer_that_does_not_convert_is_refused(tmp_path):
    """A vocabulary that does not say of which kind it is."""
    write_model(tmp_path / "m.gguf", "granite", build("Granite", {}), {})
    with pytest.raises(CheckpointError, match=r"its tokenizer .* does not convert"):
        Gguf().tokenizer(tmp_path / "m.gguf")
