"""Weights for programs that are compared: each value is in memory once, whichever of them names it.

Two programs that differ by a pass share most of their weights. What only one of them names (three matrices
joined to one) is made when it runs and dropped when the other does. Beyond ``limit`` bytes nothing is kept:
such a weight is made again each time that it is needed, so memory stays bounded and time does not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from irloom.ir.checkpoint import Checkpoint
from irloom.ir.elem import Elem
from irloom.ir.graph import Module, Param
from irloom.ir.interp import bound_value
from irloom.ir.weight_expr import show_weight, tensor_name

from .layers import rename_tensors
from .sample import bindings

Key = tuple[str, str]


class SharedWeights:
    """Values of weight expressions on one device, by expression, layer and element."""

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device | str = "cpu", limit: int | None = None
    ) -> None:
        self.checkpoint, self.device = checkpoint, torch.device(device)
        self.limit = free_memory(self.device) // 2 if limit is None else limit
        self.kept: dict[Key, torch.Tensor] = {}
        self.nbytes = 0

    def of(self, m: Module) -> Callable[[Param, int | None], torch.Tensor]:
        """What gives the weights of ``m`` to an interpreter; what ``m`` does not name is dropped."""
        named = {_key(p, layer) for p, layer in bindings(m)}
        for key in [k for k in self.kept if k not in named]:
            self.nbytes -= self.kept.pop(key).nbytes
        return lambda p, layer: self._weight(p, layer, m)

    def _weight(self, p: Param, layer: int | None, m: Module) -> torch.Tensor:
        key = _key(p, layer)
        if (kept := self.kept.get(key)) is not None:
            return kept
        x = bound_value(p, self.checkpoint, layer, m)
        x = x.to(self.device, p.type.elem.torch if isinstance(p.type.elem, Elem) else x.dtype)
        if "const(" not in key[0] and self.nbytes + x.nbytes <= self.limit:
            self.kept[key] = x
            self.nbytes += x.nbytes
        return x


def _key(p: Param, layer: int | None) -> Key:
    assert p.weight is not None
    named = rename_tensors(p.weight, lambda name: tensor_name(name, layer))
    return show_weight(named), str(p.type.elem)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    for line in _meminfo():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 8 << 30


def _meminfo() -> list[str]:
    place = Path("/proc/meminfo")
    return place.read_text().splitlines() if place.exists() else []
