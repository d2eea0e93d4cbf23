"""Seeded random weights in which a mistake shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from irloom.ir.checkpoint import RandomCheckpoint
from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.graph import Func, Module, Node, Param, Stmt, Value
from irloom.ir.ops import add, cast, embedding, reshape
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.safetensors import Stored
from irloom.ir.weight_expr import Tensor, tensor_name

from .sample import bindings, generator, weight_dims

SIZES = (1.0, 0.2, 0.01, 3.0)
"""How large the rows of a table are, in turn: the root mean square of what a first norm sees."""
BRANCH = 0.02
"""How much of a layer's blocks is added to the hidden state: small tokens stay small behind many layers."""


class RandomWeights:
    """Random weights under the names that programs bind, in their elements.

    Beside ``RandomCheckpoint``: rows of a table of embeddings differ in size, and what a block adds to the
    hidden state is small, so that what a norm adds under its root counts for some tokens, and those consist
    of what blocks compute. Norm weights and biases are far from 1 and 0, so that one that is lost or
    exchanged is seen. Values depend on seed, name, dims and element, and on the kind of ``device``.
    """

    def __init__(self, modules: Sequence[Module], seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.path, self.seed, self.device = Path(f"random-{seed}"), seed, torch.device(device)
        self._random = RandomCheckpoint(seed, weight_dims(modules))
        self._elems: dict[str, Elem] = {}
        self._tables: set[str] = set()
        self._branches: set[str] = set()
        layers: dict[Param, list[int | None]] = {}
        for p, layer in (x for m in modules for x in bindings(m)):
            layers.setdefault(p, []).append(layer)
            if isinstance(p.weight, Tensor) and isinstance(p.type.elem, Elem):
                self._elems.setdefault(tensor_name(p.weight.name, layer), p.type.elem)
        for f in (f for m in modules for f in m.funcs.values()):
            self._tables.update(_names((n.args[1] for n in f.nodes if n.op is embedding), layers))
            self._branches.update(_names(_added(f), layers))

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
            x.mul_((BRANCH if name in self._branches else 1.3) / math.sqrt(max(dims[-1], 1)))
        else:
            x.mul_(0.3).add_(1.0 if name.endswith("weight") else 0.0)
        return x.to(elem.torch)

    def read_quantized(self, name: str, quant: Quant) -> QuantizedTensor | None:
        return None

    def stored(self, name: str) -> Stored | None:
        return None


def _names(values: Iterator[object], layers: dict[Param, list[int | None]]) -> Iterator[str]:
    """The tensors that weights among ``values`` are, for every layer."""
    for p in values:
        if isinstance(p, Param) and isinstance(p.weight, Tensor):
            yield from (tensor_name(p.weight.name, layer) for layer in layers.get(p, []))


def _added(f: Func) -> Iterator[Value]:
    """The weights of products whose results are added to something that is computed, too."""
    producer = f.producers()
    for n in (n for n in f.nodes if n.op is add):
        operands = [_made(a, producer) for a in n.args]
        if all(s is not None for s in operands):
            yield from (v for s in operands if isinstance(s, Node) for v in s.values)


def _made(a: object, producer: dict[Value, Stmt]) -> Stmt | None:
    """What makes a value, behind casts and other dims."""
    s = producer.get(a) if isinstance(a, Value) else None
    while isinstance(s, Node) and s.op in (cast, reshape):
        s = producer.get(s.values[0])
    return s
