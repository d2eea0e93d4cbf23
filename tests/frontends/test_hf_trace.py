"""How a model is found, traced, checked and kept: from a config, a directory, a module, the cache."""

import json
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BartConfig, Gemma3TextConfig, GPT2Config, LlamaConfig, Mamba2Config, Qwen2Config

from irloom.frontends import store
from irloom.frontends.core import TraceOptions, frontend_of
from irloom.frontends.hf import selfcheck, trace_hf
from irloom.frontends.hf.calling import Calling
from irloom.frontends.hf.skeleton import meta_parameters, skeleton
from irloom.frontends.hf.tiny import tiny_config, with_layers
from irloom.frontends.hf.tiny_sizes import VOCAB
from irloom.frontends.hf.trace import trace_config
from irloom.ir.elem import ELEMS
from irloom.ir.errors import CheckpointError, TraceError
from irloom.ir.show import show
from irloom.ir.weight_expr import tensor_names


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def config():
    return LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4
    )


@pytest.fixture
def directory(tmp_path, config):
    config.save_pretrained(tmp_path / "small-llama")
    return tmp_path / "small-llama"


CROSS = {
    "gpt2": GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=64, n_positions=64, add_cross_attention=True
    ),
    "bart": BartConfig(
        d_model=32, vocab_size=64, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=48
    ),
}


@pytest.mark.parametrize("name", CROSS)
def test_cross_attention_has_nothing_to_read_without_an_encoder(name):
    """A decoder alone is called without encoder states: its layers leave cross attention out."""
    model = skeleton(CROSS[name], torch.float32)
    cross = {n for n, _ in model.named_parameters() if "crossattention" in n or "encoder_attn" in n}
    assert cross
    main = trace_hf(CROSS[name]).main
    assert [n.op.name for n in main.nodes].count("attention") == 2
    assert not cross & {name for p in main.weights if p.weight for name in tensor_names(p.weight)}


class TestSources:
    def test_a_config(self, config):
        assert trace_hf(config, dtype=torch.bfloat16).main.params[2].type.elem == ELEMS["bf16"]

    def test_a_directory_is_called_by_its_name(self, directory):
        assert trace_hf(directory).model == "small-llama"
        assert frontend_of(directory).trace(directory, TraceOptions()).model == "small-llama"

    def test_a_module_is_traced_as_it_is(self, config):
        built = trace_hf(skeleton(config, torch.float32))
        assert [n.op.name for n in built.main.nodes] == [n.op.name for n in trace_hf(config).main.nodes]
        with pytest.raises(TraceError, match="traced whole"):
            trace_hf(skeleton(config, torch.float32), layers=1)

    def test_the_text_of_a_program(self, config, tmp_path):
        module = trace_hf(config)
        path = tmp_path / "llama.irloom"
        path.write_text(show(module))
        assert frontend_of(path).name == "text"
        assert frontend_of(path).trace(path, TraceOptions()) == module

    def test_what_is_no_model(self, tmp_path):
        with pytest.raises(TraceError, match="no frontend claims it"):
            frontend_of(tmp_path)
        with pytest.raises(TraceError, match="no such file or directory"):
            frontend_of(tmp_path / "absent")
        with pytest.raises(CheckpointError, match=r"no config\.json"):
            trace_hf(tmp_path)

    def test_tracing_leaves_the_library_as_it_was(self, config):
        model: Any = skeleton(config, torch.float32)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        trace_hf(model)
        assert model.config._attn_implementation == "eager"
        assert before
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffer, before[name])


class TestLayers:
    def test_the_first_layers_only(self, config):
        assert len([n for n in trace_hf(config, layers=1).main.nodes if n.op.name == "attention"]) == 1

    def test_lists_with_an_entry_per_layer_are_cut_alike(self):
        kept = with_layers(Gemma3TextConfig(num_hidden_layers=12), 7)
        assert kept.num_hidden_layers == len(kept.layer_types) == 7
        assert kept.layer_types[5] == "full_attention"


class TestTinyConfigs:
    """The tiny config has the structure of the real one: kinds of layers, grouping of heads, flags."""

    def test_one_layer_of_each_kind(self):
        tiny = tiny_config(Gemma3TextConfig())
        assert tiny.layer_types == ["sliding_attention", "full_attention"]
        assert tiny.sliding_window == 8

    def test_heads_stay_grouped_as_they_are(self):
        kinds = [tiny_config(LlamaConfig(num_key_value_heads=n)).num_key_value_heads for n in (1, 8, 32)]
        assert kinds == [1, 2, 4]

    def test_flags_stay(self):
        config = tiny_config(
            Qwen2Config(use_sliding_window=True, max_window_layers=1, tie_word_embeddings=True)
        )
        assert config.use_sliding_window
        assert config.tie_word_embeddings
        assert set(config.layer_types) == {"full_attention", "sliding_attention"}

    def test_heads_of_a_state_space_fill_its_width(self):
        tiny = tiny_config(Mamba2Config(hidden_size=768, num_heads=24, head_dim=64))
        assert tiny.num_heads * tiny.head_dim == tiny.expand * tiny.hidden_size

    def test_renamed_fields(self):
        tiny = tiny_config(GPT2Config())
        assert (tiny.n_embd, tiny.n_layer, tiny.n_head, tiny.hidden_size) == (64, 2, 4, 64)


class TestCheck:
    def test_an_architecture_is_close_to_the_library(self, config):
        assert selfcheck.check_architecture(config) < 1e-5

    def test_a_misread_architecture_is_refused(self, config, monkeypatch):
        monkeypatch.setattr(Calling, "alone", lambda self, ids: torch.zeros(len(ids), VOCAB))
        with pytest.raises(TraceError, match="LlamaConfig: on a tiny model its logits differ"):
            trace_hf(config)
        module = trace_config(config, TraceOptions(check=False))
        assert module.main.nodes

    def test_an_architecture_that_the_library_cannot_run_small_is_refused(self, config, monkeypatch):
        def fails(self: Calling, ids: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("The size of a tensor\n  must match")

        monkeypatch.setattr(Calling, "alone", fails)
        said = (
            r"LlamaForCausalLM: .* ran it on 26 tokens, and failed: RuntimeError: The size of a tensor must"
        )
        with pytest.raises(TraceError, match=said):
            trace_hf(config)


class TestCache:
    def test_a_trace_is_kept(self, config, cache, monkeypatch):
        first = trace_hf(config)
        (file,) = (cache / "irloom" / "traces").iterdir()
        assert file.suffix == ".irloom"
        monkeypatch.setattr("irloom.frontends.hf.capture.capture", None)
        assert trace_hf(config) == first

    def test_options_and_config_make_another_trace(self, config, cache):
        trace_hf(config)
        trace_hf(config, dtype=torch.float16)
        config.rms_norm_eps = 0.5
        trace_hf(config)
        assert len(list((cache / "irloom" / "traces").iterdir())) == 3

    def test_a_damaged_file_is_made_again(self, config, cache):
        first = trace_hf(config)
        (file,) = (cache / "irloom" / "traces").iterdir()
        file.write_text(file.read_text()[:200])
        assert trace_hf(config) == first
        assert trace_hf(config) == first

    def test_a_cache_that_cannot_be_written_costs_nothing_else(self, config, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert trace_hf(config).main.nodes

    def test_a_changed_version_makes_another_trace(self, config, cache, monkeypatch):
        trace_hf(config)
        monkeypatch.setattr(store, "_versions", lambda: ("5.23.1",))
        trace_hf(config)
        assert len(list((cache / "irloom" / "traces").iterdir())) == 2


def test_a_directory_with_a_broken_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        trace_hf(tmp_path)


def test_weights_that_no_machine_holds_take_no_memory():
    with meta_parameters():
        layer = nn.Linear(1 << 24, 1 << 24)
    assert layer.weight.is_meta
    assert layer.weight.shape == (1 << 24, 1 << 24)


def test_what_a_constructor_computes_is_computed_anew_for_the_tiny_model():
    """DeepSeek's config sets the head's size to that of its rotated part, whatever that is."""
    from transformers import DeepseekV3Config

    from irloom.frontends.hf.tiny import tiny_config

    small = tiny_config(DeepseekV3Config(qk_rope_head_dim=16))
    assert small.head_dim == small.qk_rope_head_dim
    assert small.qk_head_dim == small.qk_nope_head_dim + small.qk_rope_head_dim
