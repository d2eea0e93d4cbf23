"""Checkpoints of multimodal models: their decoder is read, under any prefix and beside any tower."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from irloom.frontends.core import TraceOptions, frontend_of
from irloom.ir.elem import ELEMS
from irloom.ir.errors import CheckpointError
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import Seqs

TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SEEN: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Qwen2_5_VL": (
        {**TEXT, "rope_parameters": SECTIONS},
        {
            "depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
    ),
    "Gemma3": ({**TEXT, "head_dim": 8, "sliding_window": 8}, SEEN),
    "Llama4": (
        {**TEXT, "head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 48,
         "attention_chunk_size": 16, "interleave_moe_layer_step": 1},
        {**SEEN, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    ),
    "Mistral3": (
        {**TEXT, "model_type": "mistral", "head_dim": 8},
        {**SEEN, "model_type": "pixtral", "head_dim": 8},
    ),
    "Llava": (
        {**TEXT, "model_type": "llama"},
        {**SEEN, "model_type": "clip_vision_model", "projection_dim": 32},
    ),
}  # fmt: skip
"""Name of the library's classes to a model's text config and vision config."""


def saved(path: Path, name: str) -> Any:
    """A tiny model of random weights, saved as the library does."""
    text, vision = MODELS[name]
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(path)
    return model


def logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    front, options = frontend_of(path), TraceOptions(dtype=ELEMS["f32"], check=False)
    run = Interpreter(front.trace(path, options), front.checkpoint(path, options))
    return run(ids.int(), Seqs.of([len(ids)]))[0]


@pytest.mark.parametrize("name", MODELS)
def test_the_text_part_answers_as_the_whole_model_does_to_text(tmp_path, name):
    model = saved(tmp_path, name)
    ids = torch.randint(3, 96, (9,), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        theirs = model(input_ids=ids[None], use_cache=False).logits[0]
    torch.testing.assert_close(logits(tmp_path, ids), theirs, atol=1e-4, rtol=1e-4)


def test_a_tensor_that_no_part_of_the_model_has_is_still_named(tmp_path):
    saved(tmp_path, "Llava")
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "strange.weight": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match=r"no place for `strange\.weight`"):
        frontend_of(tmp_path).checkpoint(tmp_path, TraceOptions())


def test_a_missing_part_of_the_decoder_is_named_as_the_decoder_names_it(tmp_path):
    saved(tmp_path, "Mistral3")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({n: t for n, t in tensors.items() if "layers.1.mlp.up_proj" not in n or "vision" in n}, file)
    with pytest.raises(CheckpointError, match=r"nothing in it for `model\.layers\.1\.mlp\.up_proj\.weight`"):
        frontend_of(tmp_path).checkpoint(tmp_path, TraceOptions())
