"""The weights of a module in memory, as a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from irloom.ir.checkpoint import absent
from irloom.ir.elem import Elem, Quant, elem_of
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.safetensors import Stored


class LiveCheckpoint:
    """Parameters and buffers of ``module`` under the names that a trace of it binds; nothing is copied."""

    def __init__(self, module: nn.Module) -> None:
        self._tensors: dict[str, torch.Tensor] = {
            **{name: p.detach() for name, p in module.named_parameters(remove_duplicate=False)},
            **dict(module.named_buffers()),
        }
        self.path = Path(f"<{type(module).__name__} in memory>")

    def names(self) -> Sequence[str]:
        return list(self._tensors)

    def dims(self, name: str) -> tuple[int, ...]:
        return tuple(self.read(name).shape)

    def elem(self, name: str) -> Elem:
        return elem_of(self.read(name).dtype)

    def read(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise absent(self, name)
        return self._tensors[name]

    def read_quantized(self, name: str, quant: Quant) -> QuantizedTensor | None:
        return None

    def stored(self, name: str) -> Stored | None:
        return None
