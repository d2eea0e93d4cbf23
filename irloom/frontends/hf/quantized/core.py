"""What a stored form of a weight is, and a checkpoint in which such weights are plain ones again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from irloom.ir.checkpoint import Checkpoint, row_steps
from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.errors import CheckpointError
from irloom.ir.weights import Tensor, expression_blocks

if TYPE_CHECKING:
    from irloom.ir.quantized import QuantizedTensor
    from irloom.ir.safetensors import Stored


class Packed(Protocol):
    """How one weight is stored: in several tensors of the file, whose names are ``parts``."""

    @property
    def parts(self) -> tuple[str, ...]: ...

    @property
    def dims(self) -> tuple[int, ...]:
        """Of the plain weight."""
        ...

    def rows(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Entries ``start`` to ``stop`` along the first dim, in f32."""
        ...

    def kept(self, raw: Checkpoint, quant: Quant) -> QuantizedTensor | None:
        """The weight in the scheme ``quant``, where it is stored in just that; else None."""
        ...


class Dequantized:
    """``raw`` with the weights ``packed`` in f32 under their own names, and without the tensors ``gone``."""

    def __init__(self, raw: Checkpoint, packed: Mapping[str, Packed], gone: Collection[str]) -> None:
        self.raw, self.packed = raw, packed
        first = {weight.parts[0]: name for name, weight in packed.items()}
        hidden = {part for weight in packed.values() for part in weight.parts[1:]} | set(gone)
        self._names = [first.get(name, name) for name in raw.names() if name not in hidden]

    @property
    def path(self) -> Path:
        return self.raw.path

    def names(self) -> Sequence[str]:
        return self._names

    def dims(self, name: str) -> tuple[int, ...]:
        return self.packed[name].dims if name in self.packed else self.raw.dims(name)

    def elem(self, name: str) -> Elem:
        return ELEMS["f32"] if name in self.packed else self.raw.elem(name)

    def read(self, name: str) -> torch.Tensor:
        if name not in self.packed:
            return self.raw.read(name)
        out, done = torch.empty(self.dims(name)), 0
        for block in self.blocks(name):
            out[done : done + len(block)] = block
            done += len(block)
        return out

    def blocks(self, name: str, rows: slice = slice(None)) -> Iterator[torch.Tensor]:
        if name not in self.packed:
            yield from expression_blocks(Tensor(name), self.raw, rows)
            return
        weight = self.packed[name]
        for start, stop in row_steps(weight.dims, ELEMS["f32"], rows):
            yield weight.rows(self.raw, start, stop)

    def read_quantized(self, name: str, quant: Quant) -> QuantizedTensor | None:
        packed = self.packed.get(name)
        return packed.kept(self.raw, quant) if packed else self.raw.read_quantized(name, quant)

    def stored(self, name: str) -> Stored | None:
        return None if name in self.packed else self.raw.stored(name)


def rows_of(raw: Checkpoint, name: str, start: int, stop: int) -> torch.Tensor:
    """Some rows of a tensor of the file as they are."""
    blocks = list(expression_blocks(Tensor(name), raw, slice(start, stop)))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def disagreeing(raw: Checkpoint, names: Sequence[str], why: str) -> CheckpointError:
    """The error for tensors of one weight that do not belong together."""
    facts = ", ".join(f"`{n}` {raw.elem(n)}{list(raw.dims(n))}" for n in names)
    return CheckpointError(
        f"{raw.path}: {facts}: {why}",
        hint="the file is damaged, or the quantization_config in config.json is that of another model",
    )
