"""LoRA adapters that PEFT writes: merged as PEFT merges them, or refused with what is strange about them."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from irloom.driver import LLM
from irloom.frontends.core import TraceOptions, frontend_of
from irloom.frontends.peft.frontend import Merged, identity
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.errors import CheckpointError, EngineMismatch
from irloom.ir.weights import Cast, Quantize, Tensor, materialize
from irloom.runtime import SamplingParams
from tests.tiny import llama_config, save_model

F32 = TraceOptions(dtype=ELEMS["f32"])


def adapted(model: Any, folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Save an adapter of random values for ``model`` in ``folder``; the weights that PEFT merges it to."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the model has no name, and what PEFT thinks of tied weights
        torch.default_generator.manual_seed(3)
        made = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, **settings}))
        for p in made.parameters():
            if p.requires_grad:
                p.data.normal_(0, 0.3)
        made.save_pretrained(str(folder))
        return dict(made.merge_and_unload().state_dict())


def checkpoint(base: Path, adapter: Path) -> Checkpoint:
    return Merged(frontend_of(base), adapter).checkpoint(base, F32)


def close(found: Checkpoint, wanted: dict[str, torch.Tensor]) -> None:
    assert set(found.names()) == set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found.read(name), tensor.detach(), msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture
def base(tmp_path) -> Any:
    return save_model(llama_config(num_hidden_layers=2), tmp_path / "base")


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "use_rslora": True},
        {
            "target_modules": ["q_proj", "down_proj"],
            "rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 8},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 32},
        },
        {"target_modules": ["embed_tokens", "o_proj"], "layers_to_transform": None},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
        {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    ],
    ids=[
        "attention",
        "all, rank-stabilized",
        "ranks and alphas by module",
        "embedding",
        "saved whole",
        "DoRA",
    ],
)
def test_weights_are_those_that_peft_merges(base, tmp_path, settings):
    wanted = adapted(base, tmp_path / "lora", **settings)
    close(checkpoint(tmp_path / "base", tmp_path / "lora"), wanted)


def test_weights_stored_as_their_transpose_are_merged_so(tmp_path):
    from transformers import GPT2Config

    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    base = save_model(config, tmp_path / "base")
    wanted = adapted(base, tmp_path / "lora", target_modules=["c_attn"], fan_in_fan_out=True)
    close(checkpoint(tmp_path / "base", tmp_path / "lora"), wanted)


@pytest.mark.parametrize(
    "targets", [["mlp.experts.gate_up_proj"], ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]]
)
def test_parameters_of_experts_are_merged_expert_by_expert(tmp_path, targets, monkeypatch):
    """Stacked in both matrices; two parameters of a module are wrapped one around the other."""
    from transformers import MixtralConfig

    base = save_model(
        MixtralConfig(
            vocab_size=320, hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_local_experts=4,
            num_attention_heads=4, num_key_value_heads=2,
        ),
        tmp_path / "base",
    )  # fmt: skip
    settings: dict[str, Any] = {"target_modules": [], "target_parameters": targets, "use_rslora": True}
    wanted = adapted(base, tmp_path / "lora", **settings)
    close(checkpoint(tmp_path / "base", tmp_path / "lora"), wanted)
    monkeypatch.setattr("irloom.ir.checkpoint.BLOCK", 256)
    close(checkpoint(tmp_path / "base", tmp_path / "lora"), wanted)


def test_an_adapter_may_name_modules_as_the_file_does(tmp_path):
    """Trained on experts stored one by one, merged into the tensor of them all."""
    from transformers import MixtralConfig

    save_model(
        MixtralConfig(
            vocab_size=320, hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_local_experts=4,
            num_attention_heads=4, num_key_value_heads=2,
        ),
        tmp_path / "base",
    )  # fmt: skip
    plain = frontend_of(tmp_path / "base").checkpoint(tmp_path / "base", F32)
    (expert,) = [n for n in load_file(tmp_path / "base/model.safetensors") if "experts.2" in n and "w1" in n]
    a, b = torch.randn(4, 32), torch.randn(16, 4)
    write(tmp_path / "lora", {expert.removesuffix(".weight"): (a, b)}, r=4, lora_alpha=2)
    wanted = plain.read("model.layers.0.mlp.experts.gate_up_proj").clone()
    wanted[2, :16] += 0.5 * b @ a
    merged = checkpoint(tmp_path / "base", tmp_path / "lora")
    torch.testing.assert_close(merged.read("model.layers.0.mlp.experts.gate_up_proj"), wanted)


def write(folder: Path, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], **config: Any) -> None:
    """An adapter directory with an A and a B for each module."""
    folder.mkdir(exist_ok=True)
    tensors = {
        f"base_model.model.{module}.lora_{which}.weight": matrix.contiguous()
        for module, pair in pairs.items()
        for which, matrix in zip("AB", pair, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))


Q = "model.layers.0.self_attn.q_proj"
PAIR = (torch.ones(2, 64), torch.ones(64, 2))


def test_a_merged_weight_is_never_linked_to_nor_taken_as_the_file_rounds_it(base, tmp_path):
    write(tmp_path / "lora", {Q: PAIR}, r=2, lora_alpha=2)
    found = checkpoint(tmp_path / "base", tmp_path / "lora")
    assert found.stored(f"{Q}.weight") is None
    assert found.stored("model.norm.weight") is not None
    i8 = Quant("i8", ELEMS["i8"], 0, ELEMS["f32"])
    rounded = materialize(Quantize(Tensor(f"{Q}.weight"), i8), found)
    near = materialize(Cast(Tensor(f"{Q}.weight"), ELEMS["f32"]), found)
    assert isinstance(near, torch.Tensor)
    assert (rounded.dequantize() - near).abs().max() < 0.05


def test_a_large_weight_is_merged_some_rows_at_a_time(base, tmp_path, monkeypatch):
    wanted = adapted(base, tmp_path / "lora", target_modules=["q_proj", "embed_tokens"])
    monkeypatch.setattr("irloom.ir.checkpoint.BLOCK", 256)
    close(checkpoint(tmp_path / "base", tmp_path / "lora"), wanted)


def test_an_adapter_given_as_the_model_finds_its_base(base, tmp_path):
    write(tmp_path / "lora", {Q: PAIR}, r=2, lora_alpha=2, base_model_name_or_path=str(tmp_path / "base"))
    front = frontend_of(tmp_path / "lora")
    assert front.name == "peft"
    found = front.checkpoint(tmp_path / "lora", F32).read(f"{Q}.weight")
    torch.testing.assert_close(found, base.state_dict()[f"{Q}.weight"] + 2.0)
    assert front.tokenizer(tmp_path / "lora") == tmp_path / "base"
    assert front.facts(tmp_path / "lora").max_context == 256
    before = identity(tmp_path / "lora", None)
    (tmp_path / "base/config.json").touch()
    assert identity(tmp_path / "lora", None) != before


def test_an_adapter_whose_base_is_not_here_says_what_to_give(tmp_path):
    write(tmp_path / "lora", {Q: PAIR}, r=2, lora_alpha=2, base_model_name_or_path="/gone/base")
    with pytest.raises(CheckpointError) as refused:
        frontend_of(tmp_path / "lora").trace(tmp_path / "lora", F32)
    assert str(refused.value) == (
        f'{tmp_path}/lora: its adapter_config.json names "/gone/base" as its model, which is not here\n'
        "hint: give the model, and the adapter with `--adapter`"
    )


def test_it_answers_as_the_merged_model(base, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain = greedy(base)
    adapted(base, tmp_path / "lora", target_modules="all-linear")  # merges into `base` itself
    assert greedy(base) != plain

    limits: dict[str, Any] = {"max_tokens": 32, "max_seqs": 1, "max_context": 32}

    def answer(path: Path) -> list[int]:
        llm = LLM(path, target="reference", adapter=tmp_path / "lora", **limits)
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
        return list(llm.generate([{"prompt_token_ids": PROMPT}], params)[0].token_ids)

    assert answer(tmp_path / "base") == greedy(base)
    engine = next(p.parent for p in (tmp_path / "cache/irloom/engines").glob("*/manifest.json"))
    with pytest.raises(EngineMismatch, match="an engine's weights are final"):
        answer(engine)


PROMPT = [5, 9, 3]


def greedy(model: Any) -> list[int]:
    """The library's own answer of 12 tokens, without a cache."""
    ids = list(PROMPT)
    for _ in range(12):
        with torch.inference_mode():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


def refusal(base: Path, adapter: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        checkpoint(base, adapter)
    return str(refused.value).replace(str(adapter.parent), "PATH")


MERGE = "\nhint: merge it with peft (`merge_and_unload`) and give the merged model"
DAMAGED = "\nhint: the file is damaged, or adapter_config.json is that of another adapter"
OTHER = "\nhint: is it an adapter of another model?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "/adapter_config.json: a IA3 adapter is not merged" + MERGE),
        ({"lora_bias": True}, "/adapter_config.json: `lora_bias` True is not merged" + MERGE),
        ({"bias": "all"}, "/adapter_config.json: `bias` 'all' is not merged" + MERGE),
        ({"brand_new": 3}, "/adapter_config.json: `brand_new` 3 is not merged" + MERGE),
        (
            {"init_lora_weights": "pissa"},
            "/adapter_config.json: `init_lora_weights` 'pissa' is not merged" + MERGE,
        ),
        (
            {"r": 3},
            f": `{Q}` has A [2, 64] and B [64, 2], but its rank is 3{DAMAGED}",
        ),
        ({"lora_alpha": "x"}, f"/adapter_config.json: `lora_alpha` of `{Q}` is 'x', not a positive number"),
    ],
)
def test_settings_that_are_not_plain_lora_are_refused(base, tmp_path, change, message):
    write(tmp_path / "lora", {Q: PAIR}, **{"r": 2, "lora_alpha": 2, **change})
    assert refusal(tmp_path / "base", tmp_path / "lora") == f"PATH/lora{message}"


def test_a_module_that_the_model_has_not_is_named(base, tmp_path):
    write(tmp_path / "lora", {"model.layers.7.q": PAIR}, r=2, lora_alpha=2)
    assert refusal(tmp_path / "base", tmp_path / "lora") == (
        f"PATH/lora: the model has no `model.layers.7.q.weight`{OTHER}"
    )


def test_a_weight_of_other_dims_is_named_with_both(base, tmp_path):
    write(tmp_path / "lora", {Q: (torch.ones(2, 32), torch.ones(64, 2))}, r=2, lora_alpha=2)
    assert refusal(tmp_path / "base", tmp_path / "lora") == (
        f"PATH/lora: its `{Q}.weight` is [64, 32], but the model's is [64, 64]{OTHER}"
    )


def test_half_a_pair_and_a_magnitude_are_refused(base, tmp_path):
    write(tmp_path / "lora", {Q: PAIR}, r=2, lora_alpha=2)
    file = tmp_path / "lora/adapter_model.safetensors"
    tensors = load_file(file)
    save_file({n: t for n, t in tensors.items() if "lora_A" in n}, file)
    assert refusal(tmp_path / "base", tmp_path / "lora") == f"PATH/lora: `{Q}` has A, not one A and one B"
    strange = f"base_model.model.{Q}.lora_magnitude_vector"
    save_file({**tensors, strange: torch.ones(64)}, file)
    assert refusal(tmp_path / "base", tmp_path / "lora") == (
        f"PATH/lora: `{strange}` is no part of plain LoRA{MERGE}"
    )


def test_a_change_of_one_of_two_tied_tensors_is_refused(tmp_path):
    save_model(llama_config(num_hidden_layers=1, tie_word_embeddings=True), tmp_path / "base")
    write(tmp_path / "lora", {"lm_head": (torch.ones(2, 64), torch.ones(320, 2))}, r=2, lora_alpha=2)
    assert refusal(tmp_path / "base", tmp_path / "lora") == (
        "PATH/lora: it changes `lm_head.weight`, which is tied to `model.embed_tokens.weight`\n"
        'hint: store both in the model and set "tie_word_embeddings": false in its config.json'
    )


def test_a_pickled_adapter_is_read_without_running_it(base, tmp_path):
    wanted = adapted(base, tmp_path / "lora", target_modules=["q_proj"])
    file = tmp_path / "lora/adapter_model.safetensors"
    torch.save(load_file(file), tmp_path / "lora/adapter_model.bin")
    file.unlink()
    close(checkpoint(tmp_path / "base", tmp_path / "lora"), wanted)
