"""The architectures, and a tiny model of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from irloom.frontends.hf.randomized import randomized
from irloom.frontends.hf.selfcheck import library_logits
from irloom.frontends.hf.skeleton import causal_config
from irloom.frontends.hf.tiny import tiny_config
from irloom.ir.errors import TraceError
from irloom.zoo.overrides import NEEDED, OVERRIDES, REFUSED


def names() -> list[str]:
    """Every entry of the library's table of causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def full_size(name: str) -> Any:
    """The default config of an architecture in as few layers as the tiny one has; ``TraceError`` if none.

    A field that the default leaves out is the tiny one's, but that heads are as wide as others.
    """
    config = default(name)
    wide, small = (c.get_text_config(decoder=True) for c in (config, tiny(name)))
    layers = wide.num_hidden_layers
    kinds = {k: v for k, v in small.to_dict().items() if "layer" in k and _counts_layers(k, v)}
    for k, v in {**wide.to_dict(), **kinds}.items():
        if k in kinds:
            setattr(wide, k, v)
        elif isinstance(v, list) and len(v) == layers:
            setattr(wide, k, v[: small.num_hidden_layers])
    needed = NEEDED.get(wide.model_type)
    for k in needed.fields if needed else ():
        if getattr(wide, k, None) is None:
            setattr(wide, k, wide.head_dim if k.endswith("head_dim") else getattr(small, k))
    return config


def _counts_layers(field: str, value: Any) -> bool:
    return field.startswith("num_") or isinstance(value, list)


def default(name: str) -> Any:
    """The config of an architecture as the library has it by default; ``TraceError`` if it has none."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if name in REFUSED:
        raise TraceError(REFUSED[name])
    if name not in CONFIG_MAPPING:
        raise TraceError(f"`{name}` is no model type of this transformers", hint="`irloom zoo` lists them")
    return _decoding(CONFIG_MAPPING[name]())


def tiny(name: str) -> Any:
    """The tiny config of an architecture; ``TraceError`` says why there is none."""
    return _decoding(tiny_config(default(name), OVERRIDES, thorough=True))


def _decoding(config: Any) -> Any:
    for part in (config, causal_config(config)):
        if hasattr(part, "is_decoder"):
            part.is_decoder = True
    return config


@dataclass(frozen=True)
class Specimen:
    """A tiny model of an architecture: its config, and the library's model with random weights."""

    name: str
    config: Any
    model: nn.Module

    @staticmethod
    def of(name: str) -> Specimen:
        """Build one; ``TraceError`` says why there is none."""
        config = tiny(name)
        return Specimen(name, config, randomized(config))

    @property
    def ordinary(self) -> torch.Tensor:
        """Token ids that mean nothing special to the model."""
        text = self.config.get_text_config(decoder=True)
        fields = [*text.to_dict().items(), *self.config.to_dict().items()]
        special = {v for k, v in fields if k.endswith(("token_id", "token_index")) and isinstance(v, int)}
        return torch.tensor([i for i in range(4, text.vocab_size) if i not in special])

    def draw(self, length: int, seed: int) -> torch.Tensor:
        """``length`` seeded token ids."""
        ids = self.ordinary
        return ids[torch.randint(len(ids), (length,), generator=torch.Generator().manual_seed(seed))]

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """What the library computes for one sequence: f32[T, V]."""
        with torch.inference_mode():
            return library_logits(self.model, ids)
