"""Tiny models of the families that the Hugging Face frontend promises, with every structural feature on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from irloom.frontends.core import TraceOptions
from irloom.frontends.hf.live import LiveCheckpoint
from irloom.frontends.hf.selfcheck import library_logits, randomized
from irloom.frontends.hf.trace import trace_config
from irloom.ir.elem import ELEMS
from irloom.ir.graph import Module
from irloom.ir.interp import Interpreter
from irloom.ir.seqs import Seqs

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _small(name: str, **extra: Any) -> Callable[[], Any]:
    def build() -> Any:
        import transformers

        return getattr(transformers, name)(**{**SMALL, **extra})

    return build


def _gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": _small("LlamaConfig"),
    "llama3": _small("LlamaConfig", rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True),
    "mistral": _small("MistralConfig", sliding_window=8, head_dim=16),
    "qwen2": _small(
        "Qwen2Config",
        use_sliding_window=True,
        sliding_window=8,
        layer_types=["full_attention", "sliding_attention"],
    ),
    "qwen3": _small("Qwen3Config", head_dim=16),
    "gemma2": _small("Gemma2Config", head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3": _small(
        "Gemma3TextConfig",
        head_dim=16,
        num_key_value_heads=1,
        sliding_window=8,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi3": _small(
        "Phi3Config",
        sliding_window=8,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
    "olmo2": _small("Olmo2Config"),
    "granite": _small(
        "GraniteConfig",
        embedding_multiplier=12.0,
        logits_scaling=8.0,
        residual_multiplier=0.22,
        attention_multiplier=0.05,
    ),
    "gpt2": _gpt2,
    "starcoder2": _small("Starcoder2Config", sliding_window=8, use_bias=True),
    "cohere": _small("CohereConfig", use_qk_norm=True),
    "cohere2": _small("Cohere2Config", sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
}
"""Family name to a function that makes its tiny config. Cohere2 has layers without rope."""

LENGTHS = (5, 30, 1, 9)
"""None is the traced token count; one is longer than every window; one is a single token."""


class Family:
    """A family's tiny model, its program, and the library's logits of four sequences."""

    def __init__(self, name: str) -> None:
        config = FAMILIES[name]()
        self.name = name
        self.module = trace_config(config, TraceOptions(dtype=ELEMS["f32"], check=False))
        self.model = randomized(FAMILIES[name]())
        generator = torch.Generator().manual_seed(7)
        self.parts = [torch.randint(3, config.vocab_size, (n,), generator=generator) for n in LENGTHS]
        with torch.inference_mode():
            self.logits = [library_logits(self.model, part) for part in self.parts]

    def run(self, parts: list[torch.Tensor], module: Module | None = None) -> torch.Tensor:
        """Logits of the packed ``parts``, by the traced program or by what passes made of it."""
        interpreter = Interpreter(module or self.module, LiveCheckpoint(self.model))
        (logits,) = interpreter(torch.cat(parts).int(), Seqs.of([len(p) for p in parts]))
        return logits


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield Family(request.param)
    patch.undo()
