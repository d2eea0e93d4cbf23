"""A Hugging Face directory: its tensors under the model's names, or a clear word for what does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from irloom.frontends.hf.checkpoint import load_tokenizer, open_checkpoint, read_config
from irloom.frontends.hf.skeleton import skeleton
from irloom.ir.errors import CheckpointError

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def build(kind: str, **extra: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **extra})
    with torch.random.fork_rng():
        return getattr(transformers, f"{kind}ForCausalLM")._from_config(config)


def saved(path: Path, kind: str = "Llama", *, shard: str = "1GB", **extra: Any) -> Any:
    model = build(kind, **extra)
    model.save_pretrained(path, max_shard_size=shard)
    return model


def saved_moe(path: Path) -> None:
    saved(path, "Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8)


def opened(path: Path, **options: Any) -> Any:
    return open_checkpoint(path, skeleton(read_config(path), torch.float32), **options)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as refused:
        opened(path, **options)
    return str(refused.value).replace(str(path), "PATH")


def rewritten(path: Path, change: Any) -> None:
    """Rewrite the one file of a directory after ``change`` of its tensors."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path / "model.safetensors")


def same(checkpoint: Any, model: Any) -> None:
    state = model.state_dict()
    assert set(checkpoint.names()) == set(state)
    for name, wanted in state.items():
        assert torch.equal(checkpoint.read(name), wanted), name
        assert checkpoint.dims(name) == wanted.shape
        assert checkpoint.elem(name).torch == wanted.dtype


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["1GB", "20kB"])
def test_a_llama_reads_back_in_one_file_and_in_shards_with_its_head_tied_or_not(tmp_path, tied, shard):
    model = saved(tmp_path, shard=shard, tie_word_embeddings=tied)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20kB")
    same(opened(tmp_path), model)


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("Mixtral", {"num_local_experts": 4}),
        ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8}),
        ("Phi3", {"pad_token_id": 0}),
        ("Gemma2", {"head_dim": 8}),
    ],
)
def test_layouts_that_the_library_converts_are_converted(tmp_path, kind, extra):
    """Experts are stored one by one and read as one tensor of them all."""
    model = saved(tmp_path, kind, **extra)
    same(opened(tmp_path), model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    same(opened(tmp_path), theirs)


def test_experts_are_stored_one_by_one(tmp_path):
    saved_moe(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "model.layers.0.mlp.experts.3.up_proj.weight" in stored
    assert opened(tmp_path).dims("model.layers.0.mlp.experts.gate_up_proj") == (4, 32, 32)


def test_names_without_the_base_models_prefix_are_found(tmp_path):
    model = saved(tmp_path, tie_word_embeddings=True)

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    rewritten(tmp_path, strip)
    same(opened(tmp_path), model)


def test_an_unchanged_tensor_can_be_linked_to(tmp_path):
    model = saved(tmp_path)
    at = opened(tmp_path).stored("model.norm.weight")
    stored = at.path.read_bytes()[at.offset : at.offset + at.nbytes]
    assert stored == model.model.norm.weight.detach().numpy().tobytes()


def test_a_missing_tensor_is_named(tmp_path):
    saved(tmp_path)
    rewritten(tmp_path, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    assert refusal(tmp_path) == (
        "PATH: nothing in it for `model.layers.1.mlp.up_proj.weight` of LlamaForCausalLM\n"
        "hint: the checkpoint is incomplete, or config.json is that of another model"
    )


def test_of_many_missing_tensors_the_first_are_named(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert refusal(tmp_path) == (
        "PATH: nothing in it for `model.layers.2.self_attn.q_proj.weight`, "
        "`model.layers.2.self_attn.k_proj.weight`, `model.layers.2.self_attn.v_proj.weight`, "
        "`model.layers.2.self_attn.o_proj.weight` and 5 more of LlamaForCausalLM\n"
        "hint: the checkpoint is incomplete, or config.json is that of another model"
    )


def test_a_tensor_without_a_place_is_named(tmp_path):
    saved(tmp_path)
    rewritten(tmp_path, lambda t: t.update({"vision.weight": torch.zeros(2)}))
    assert refusal(tmp_path) == (
        "PATH: LlamaForCausalLM has no place for `vision.weight`\nhint: is config.json that of another model?"
    )
    opened(tmp_path, whole=False)


def test_buffers_of_older_checkpoints_are_passed_over(tmp_path):
    model = saved(tmp_path)
    rewritten(tmp_path, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))
    same(opened(tmp_path), model)


def test_a_tensor_of_other_dims_than_the_config_says_is_named_with_its_file_and_both(tmp_path):
    saved(tmp_path)
    rewritten(tmp_path, lambda t: t.update({"model.norm.weight": torch.zeros(31)}))
    assert refusal(tmp_path) == (
        "PATH/model.safetensors: `model.norm.weight` is [31], but the config makes it [32]\n"
        "hint: config.json is that of another model, or the file is damaged"
    )


def test_experts_of_unequal_dims_are_refused(tmp_path):
    saved_moe(tmp_path)
    rewritten(
        tmp_path, lambda t: t.update({"model.layers.0.mlp.experts.1.up_proj.weight": torch.zeros(15, 32)})
    )
    message = refusal(tmp_path)
    assert message.startswith(
        "PATH: `model.layers.0.mlp.experts.gate_up_proj` cannot be made of "
        "`model.layers.0.mlp.experts.0.gate_proj.weight` [16, 32], "
    )


def test_a_tied_pair_with_different_values_is_refused(tmp_path):
    saved(tmp_path, tie_word_embeddings=True)
    rewritten(tmp_path, lambda t: t.update({"lm_head.weight": torch.zeros(40, 32)}))
    assert refusal(tmp_path) == (
        "PATH: `lm_head.weight` and `model.embed_tokens.weight` differ, but config.json ties them\n"
        'hint: set "tie_word_embeddings": false in config.json'
    )


def test_a_tied_pair_stored_twice_alike_is_read(tmp_path):
    model = saved(tmp_path, tie_word_embeddings=True)
    rewritten(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    same(opened(tmp_path), model)


def test_a_head_alone_stands_for_the_embedding_it_is_tied_to(tmp_path):
    model = saved(tmp_path, tie_word_embeddings=True)
    rewritten(tmp_path, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    same(opened(tmp_path), model)


def test_a_missing_head_says_how_it_may_be_tied(tmp_path):
    saved(tmp_path)
    rewritten(tmp_path, lambda t: t.pop("lm_head.weight"))
    assert refusal(tmp_path) == (
        "PATH: nothing in it for `lm_head.weight` of LlamaForCausalLM\n"
        'hint: set "tie_word_embeddings": true in config.json if the head is the embedding'
    )


def test_a_directory_without_a_config_is_refused(tmp_path):
    assert refusal(tmp_path) == (
        "PATH: no config.json\nhint: a model is a Hugging Face directory, a .gguf file or a hub id"
    )
    assert refusal(tmp_path / "gone") == "PATH/gone: no such file or directory".replace("PATH/gone", "PATH")


def test_a_config_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert refusal(tmp_path).startswith("PATH/config.json: ")


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        ('{"hidden_size": 8}', "`model_type` is missing, which names the architecture"),
        (
            '{"model_type": "loomer"}',
            (
                f"transformers {transformers.__version__} does not know `loomer`; "
                "pip install -U transformers may help"
            ),
        ),
        ('{"model_type": "llama", "hidden_size": "x"}', "compare it with the config.json of another `llama`"),
    ],
)
def test_the_hint_is_about_what_is_wrong_with_the_config(tmp_path, config, hint):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError) as refused:
        read_config(tmp_path)
    assert refused.value.hint == hint


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        load_tokenizer(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path}: no tokenizer (none of tokenizer.json, tokenizer.model, vocab.json, ...)\n"
        "hint: copy the tokenizer's files beside config.json, or give prompts as token ids"
    )


def test_a_tokenizer_that_is_damaged_is_refused(tmp_path):
    saved(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="its tokenizer does not load"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_is_loaded(tmp_path):
    from tokenizers import Tokenizer, models

    saved(tmp_path)
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)("a")["input_ids"] == [0]
