"""The weights of a GGUF file under the library's names.

The library knows, per architecture, which GGUF tensor becomes which of its own and what llama.cpp changed on
the way in (rotary rows permuted, norms stored plus one, experts joined). Its tables are used as they are;
tensors are decoded one at a time by the ``gguf`` package.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irloom.frontends.gguf.header import Entry, Header
from irloom.frontends.hf.conversion import library_recipes
from irloom.frontends.hf.fit import fit
from irloom.frontends.hf.recipes import MappedCheckpoint, Recipe, direct
from irloom.ir.checkpoint import absent
from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.errors import CheckpointError
from irloom.ir.mapped import map_bytes, map_tensor
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.safetensors import Stored
from irloom.ir.weights import split_rows

_PLAIN = {0: "f32", 1: "f16", 24: "i8", 25: "i16", 26: "i32", 27: "i64", 28: "f64", 30: "bf16"}
_Q4_0, _Q8_0 = 2, 8
_CHUNK = 1 << 18  # entries decoded at a time: temporaries of a few MB, whatever the tensor's size
_ROPE = ("rope_freqs.weight",)  # read into the config


class GGUFTensors:
    """The tensors of a GGUF file under its own names; blocks are decoded to f32."""

    def __init__(self, header: Header) -> None:
        self.header = header

    @property
    def path(self) -> Path:
        return self.header.path

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
        """Q8_0 and Q4_0 blocks are exactly groups of 32 with a scale that f16 holds."""
        entry = self.entry(name)
        base = {_Q8_0: "i8", _Q4_0: "i4"}.get(entry.kind)
        if (quant.base.name, quant.group, quant.zero) != (base, 32, None) or quant.scale.name not in {
            "f16",
            "f32",
        }:
            return None
        blocks = map_bytes(self.path, entry.offset, entry.nbytes).reshape(math.prod(entry.dims) // 32, -1)
        scales = blocks[:, :2].contiguous().view(torch.float16).to(quant.scale.torch)
        if base == "i8":
            values = blocks[:, 2:].contiguous().view(torch.int8)
        else:
            nibbles = blocks[:, 2:]
            values = torch.cat([nibbles & 15, nibbles >> 4], dim=1).view(torch.int8) - 8
        return QuantizedTensor(
            values.reshape(entry.dims), scales.reshape(*entry.dims[:-1], entry.dims[-1] // 32), None, quant
        )


def _decode(path: Path, entry: Entry) -> torch.Tensor:
    """Blocks to f32, a chunk at a time into the result.

    The package decodes 16 rows at once, so a chunk is handed to it as 16 long rows.
    """
    import gguf

    kind = gguf.GGMLQuantizationType(entry.kind)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = map_bytes(path, entry.offset, entry.nbytes).numpy().reshape(-1, block_bytes)
    out = torch.empty(entry.dims, dtype=torch.float32)
    flat = out.view(-1).numpy()
    step = max(_CHUNK // block, 16)
    try:
        for start in range(0, len(blocks), step):
            part = blocks[start : start + step]
            rows = 16 if len(part) % 16 == 0 else 1
            values = gguf.dequantize(part.reshape(rows, -1), kind)
            flat[start * block : start * block + values.size] = values.ravel()
    except NotImplementedError:
        raise CheckpointError(
            f"{path}: `{entry.name}` is stored as {kind.name}, which the gguf package cannot decode",
            hint="pip install -U gguf, or convert the file to another type",
        ) from None
    return out


def open_checkpoint(header: Header, model: Any, *, whole: bool = True) -> MappedCheckpoint:
    """The weights of ``model``, a library model with parameters on the meta device, in a GGUF file.

    ``whole`` says that the file is of this very model: then a tensor without a place in it is an error.
    """
    from transformers.integrations.gguf.utils import get_gguf_conversion_mapping, is_gguf_arch_supported

    raw = GGUFTensors(header)
    if is_gguf_arch_supported(header.architecture):
        recipes = library_recipes(raw, model, get_gguf_conversion_mapping(header.architecture, model.config))
    else:
        recipes = _processed(raw, model)
    return fit(raw, recipes, model, unused=_ROPE if whole else None)


def _processed(raw: GGUFTensors, model: Any) -> dict[str, Recipe]:
    """Recipes from the library's tables of names and its tensor processors."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    kind: Any = TENSOR_PROCESSORS.get(raw.header.architecture, TensorProcessor)
    processor = kind(config=model.config.to_dict())
    try:
        mapping = get_gguf_hf_weights_map(_Names.of(model), processor)
    except NotImplementedError as error:
        raise CheckpointError(f"{raw.path}: {error}") from None
    sources: dict[str, list[str]] = {}
    for name in raw.names():
        target = mapping.get(name) or mapping.get(name.removesuffix(".weight"))
        if target is not None:
            sources.setdefault(target, []).append(name)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    recipes: dict[str, Recipe] = {}
    for target, names in sources.items():
        made = Processed(target, tuple(names), processor, mapping, wanted[target])
        recipes[target] = direct(names[0]) if made.untouched() else made
    return recipes


@dataclass(frozen=True)
class _Names:
    """What the library's mapping asks of a model: names, with and without the base model's prefix.

    It makes a table of all names once a submodule; asked for each, an 80-layer model takes half a minute.
    """

    config: Any
    names: list[str]
    inner: tuple[tuple[str, _Names], ...] = ()

    @classmethod
    def of(cls, model: Any) -> _Names:
        names, prefix = list(model.state_dict()), model.base_model_prefix
        inner = [name.removeprefix(f"{prefix}.") for name in names if name.startswith(f"{prefix}.")]
        return cls(model.config, names, ((prefix, cls(model.config, inner)),))

    def state_dict(self) -> list[str]:
        return self.names

    def named_children(self) -> tuple[tuple[str, _Names], ...]:
        return self.inner


@dataclass(frozen=True)
class Processed:
    """A tensor that one of the library's processors makes, in f32."""

    target: str
    sources: tuple[str, ...]
    processor: Any
    mapping: dict[str, str]
    wanted: tuple[int, ...]

    def untouched(self) -> bool:
        """Whether the processor hands its one tensor on without looking at it."""
        token = object()
        try:
            return len(self.sources) == 1 and self._process(token, self.sources[0], {}).weights is token
        except (AttributeError, TypeError, ValueError, IndexError):
            return False

    def dims(self, raw: Any) -> tuple[int, ...] | None:
        """Unknown where the count of entries fits: processors work on values. Else as stored."""
        stored = [raw.dims(name) for name in self.sources]
        fits = sum(map(math.prod, stored)) == math.prod(self.wanted)
        return None if fits else stored[0]

    def elem(self, raw: Any) -> Elem:
        return ELEMS["f32"]

    def read(self, raw: Any) -> torch.Tensor:
        tensors: dict[str, torch.Tensor] = {}
        for name in self.sources:
            done = self._process(raw.read(name).float().numpy(), name, tensors)
            if done.name is not None:
                tensors[self.target] = torch.from_numpy(np.ascontiguousarray(done.weights))
        return tensors[self.target]

    def blocks(self, raw: Any, rows: slice) -> Iterator[torch.Tensor]:
        return split_rows(self.read(raw), rows)

    def stored(self, raw: Any) -> Stored | None:
        return None

    def read_quantized(self, raw: Any, quant: Quant) -> QuantizedTensor | None:
        """Rows that are only permuted can be permuted in blocks. What happens to row numbers tells."""
        (*others, source) = self.sources
        blocks = raw.read_quantized(source, quant)
        if blocks is None or others:
            return None
        rows = np.arange(blocks.dims[0], dtype=np.float64)[:, None]
        moved = np.asarray(self._process(rows, source, {}).weights)
        if moved.shape != rows.shape or not np.array_equal(np.sort(moved, axis=0), rows):
            return None
        order = torch.from_numpy(moved[:, 0].astype(np.int64))
        return QuantizedTensor(blocks.values[order], blocks.scales[order], None, quant)

    def _process(self, weights: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
        parsed = {"tensors": tensors}
        return self.processor.process(
            weights=weights, name=name, tensor_key_mapping=self.mapping, parsed_parameters=parsed
        )
