"""The tensors of a GGUF file under its own names, decoded by the ``gguf`` package some blocks at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from irloom.frontends.gguf.header import Entry, Header
from irloom.ir.checkpoint import absent
from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.errors import CheckpointError
from irloom.ir.mapped import map_bytes, map_tensor
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.safetensors import Stored

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

_PLAIN = {0: "f32", 1: "f16", 24: "i8", 25: "i16", 26: "i32", 27: "i64", 28: "f64", 30: "bf16"}
_SCALE_AT = {"Q4_0": 0, "Q5_0": 0, "Q8_0": 0, "IQ4_NL": 0, "TQ1_0": 52, "TQ2_0": 64}
"""Types whose blocks are integers times one f16 scale: at which byte of a block it lies."""

_CHUNK = 1 << 18  # entries decoded at a time: temporaries of a few MB, whatever the tensor's size


class GGUFTensors:
    """The tensors of a GGUF file under its own names; blocks are decoded to f32."""

    def __init__(self, header: Header) -> None:
        self.header = header

    @property
    def path(self) -> Path:
        return self.header.path

    def check(self) -> None:
        """Refuse a file with blocks that the package has a size of, but cannot decode."""
        import gguf

        for kind in {entry.kind for entry in self.header.entries.values()} - set(_PLAIN):
            named = gguf.GGMLQuantizationType(kind)
            one = np.zeros((1, gguf.GGML_QUANT_SIZES[named][1]), np.uint8)
            try:
                gguf.dequantize(one, named)
            except NotImplementedError:
                first = next(entry for entry in self.header.entries.values() if entry.kind == kind)
                raise CheckpointError(
                    f"{self.path}: `{first.name}` is {named.name}, which the gguf package cannot decode",
                    hint="pip install -U gguf, or convert the file to another type",
                ) from None

    def names(self) -> Sequence[str]:
        return sorted(self.header.entries, key=lambda name: self.header.entries[name].offset)

    def entry(self, name: str) -> Entry:
        if name not in self.header.entries:
            raise absent(self, name)
        return self.header.entries[name]

    def dims(self, name: str) -> tuple[int, ...]:
        return self.entry(name).dims

    def elem(self, name: str) -> Elem:
        return ELEMS[_PLAIN.get(self.entry(name).kind, "f32")]

    def stored(self, name: str) -> Stored | None:
        entry = self.entry(name)
        plain = _PLAIN.get(entry.kind)
        return Stored(self.path, entry.offset, entry.dims, ELEMS[plain]) if plain else None

    def read(self, name: str) -> torch.Tensor:
        entry = self.entry(name)
        if entry.kind in _PLAIN:
            return map_tensor(self.path, entry.offset, entry.dims, self.elem(name).torch)
        return _decode(self.path, entry)

    def read_quantized(self, name: str, quant: Quant) -> QuantizedTensor | None:
        """Blocks that are integers times one scale are groups of ``quant`` where its integers reach as far.

        Groups may be parts of a block; then each has the block's scale.
        """
        entry = self.entry(name)
        block = _Block.of(entry)
        at, group = _SCALE_AT.get(block.kind.name), quant.group or entry.dims[-1]
        held = quant.scale.name in {"f16", "f32"} and quant.base.kind == "int" and quant.base.bits <= 8
        if at is None or not held or quant.zero or quant.rows != 1 or block.entries % group:
            return None
        values = torch.empty(entry.dims, dtype=torch.int8)
        scales = torch.empty((*entry.dims[:-1], entry.dims[-1] // group), dtype=quant.scale.torch)
        rows, each = values.view(-1, block.entries), scales.view(-1, block.entries // group)
        low, high = -(1 << (quant.base.bits - 1)), (1 << (quant.base.bits - 1)) - 1
        for part, decoded in block.decoded(self.path, entry):
            stored = part[:, at : at + 2].copy().view(np.float16).astype(np.float32)
            codes = np.rint(np.divide(decoded, stored, out=np.zeros_like(decoded), where=stored != 0))
            if codes.size and (codes.min() < low or codes.max() > high):
                return None
            rows[: len(part)], rows = torch.from_numpy(codes.astype(np.int8)), rows[len(part) :]
            each[: len(part)], each = torch.from_numpy(stored), each[len(part) :]
        return QuantizedTensor(values, scales, None, quant)


@dataclass(frozen=True)
class _Block:
    """A type of blocks: ``entries`` values in ``nbytes`` bytes."""

    kind: GGMLQuantizationType
    entries: int
    nbytes: int

    @classmethod
    def of(cls, entry: Entry) -> _Block:
        import gguf

        kind = gguf.GGMLQuantizationType(entry.kind)
        return cls(kind, *gguf.GGML_QUANT_SIZES[kind])

    def decoded(self, path: Path, entry: Entry) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Some blocks at a time: their bytes u8[n, nbytes] and values f32[n, entries].

        The package decodes 16 rows at once, so a chunk is handed to it as 16 long rows.
        """
        import gguf

        blocks = map_bytes(path, entry.offset, entry.nbytes).numpy().reshape(-1, self.nbytes)
        step = max(_CHUNK // self.entries, 16)
        for start in range(0, len(blocks), step):
            part = blocks[start : start + step]
            rows = 16 if len(part) % 16 == 0 else 1
            with np.errstate(all="ignore"):  # whatever scales a file holds
                yield part, gguf.dequantize(part.reshape(rows, -1), self.kind).reshape(-1, self.entries)


def _decode(path: Path, entry: Entry) -> torch.Tensor:
    """Blocks to f32, a chunk at a time into the result."""
    out = torch.empty(entry.dims, dtype=torch.float32)
    flat = out.view(-1)
    for part, values in _Block.of(entry).decoded(path, entry):
        flat[: values.size], flat = torch.from_numpy(values.ravel()), flat[values.size :]
        del part
    return out
