"""Weights for programs that are compared: each value is in memory once, whichever of them names it.

Two programs that differ by a pass share most of their weights. What only one of them names (three matrices
joined to one) is made when it runs and dropped when the other does. Beyond ``limit`` bytes nothing is kept:
such a weight is made again each time that it is needed, so memory stays bounded and time does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from irloom.ir.checkpoint import Checkpoint, RandomCheckpoint
from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.graph import Module, Param
from irloom.ir.interp import bound_value
from irloom.ir.ops import embedding
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.safetensors import Stored
from irloom.ir.weight_expr import Tensor, show_weight, tensor_name

from .layers import rename_tensors
from .sample import bindings, generator, weight_dims

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


class RandomWeights:
    """Seeded random weights in which a mistake shows, under the names that programs bind.

    Beside ``RandomCheckpoint``: rows of a table of embeddings differ in size, so that what a norm adds under
    its root counts in some of them; norm weights and biases are far from 1 and 0, so that one that is lost or
    exchanged is seen. Elements are those of the programs. Values depend on seed, name, dims and element, and
    on the kind of ``device`` that makes them.
    """

    def __init__(self, modules: Sequence[Module], seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.path, self.seed, self.device = Path(f"random-{seed}"), seed, torch.device(device)
        self._random = RandomCheckpoint(seed, weight_dims(modules))
        self._elems: dict[str, Elem] = {}
        self._tables: set[str] = set()
        for p, layer in (x for m in modules for x in bindings(m)):
            if isinstance(p.weight, Tensor) and isinstance(p.type.elem, Elem):
                self._elems.setdefault(tensor_name(p.weight.name, layer), p.type.elem)
        for n in (n for m in modules for f in m.funcs.values() for n in f.nodes if n.op is embedding):
            table = n.args[1]
            if isinstance(table, Param) and isinstance(table.weight, Tensor):
                self._tables.add(table.weight.name)

    def names(self) -> Sequence[str]:
        return self._random.names()

    def dims(self, name: str) -> tuple[int, ...]:
        return self._random.dims(name)

    def elem(self, name: str) -> Elem:
        self.dims(name)
        return self._elems.get(name, ELEMS["f32"])

    def read(self, name: str) -> torch.Tensor:
        dims, elem = self.dims(name), self.elem(name)
        g = generator(self.seed, name, device=self.device)
        if elem.kind != "float":
            return torch.randint(2, dims, generator=g, device=self.device).to(elem.torch)
        dtype = elem.torch if elem.bits >= 16 else torch.float32
        x = torch.empty(dims, dtype=dtype, device=self.device).normal_(generator=g)
        if name in self._tables:
            x.mul_(torch.tensor(SIZES, dtype=dtype, device=self.device).repeat(len(x))[: len(x), None])
        elif len(dims) > 1:
            x.mul_(1.3 / math.sqrt(max(dims[-1], 1)))
        else:
            x.mul_(0.3).add_(1.0 if name.endswith("weight") else 0.0)
        return x.to(elem.torch)

    def read_quantized(self, name: str, quant: Quant) -> QuantizedTensor | None:
        return None

    def stored(self, name: str) -> Stored | None:
        return None


SIZES = (1.0, 0.2, 0.01, 3.0)
"""How large the rows of a table are, in turn: the root mean square of what a first norm sees."""
