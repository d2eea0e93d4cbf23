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
from irloom.zoo.overrides import OVERRIDES, REFUSED


def names() -> list[str]:
    """Every entry of the library's table of causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny(name: str) -> Any:
    """The tiny config of an architecture; ``TraceError`` says why there is none."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if name in REFUSED:
        raise TraceError(REFUSED[name])
    if name not in CONFIG_MAPPING:
        raise TraceError(f"`{name}` is no model type of this transformers", hint="`irloom zoo` lists them")
    config = tiny_config(CONFIG_MAPPING[name](), OVERRIDES, thorough=True)
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
