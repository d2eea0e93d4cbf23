"""The weights of a GGUF file under the library's names.

The ``gguf`` package knows which tensor is which of the library's, and the library what llama.cpp changed on
the way in (rotary rows stored pair by pair, norms plus one). Their tables are used; what they lack is in
``layouts.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from irloom.frontends.gguf.architectures import ARCHITECTURES
from irloom.frontends.gguf.header import Header
from irloom.frontends.gguf.layouts import expression
from irloom.frontends.gguf.rope import FACTORS
from irloom.frontends.gguf.tensors import GGUFTensors
from irloom.frontends.hf.conversion import library_recipes
from irloom.frontends.hf.fit import fit
from irloom.frontends.hf.recipes import Expressed, MappedCheckpoint, Recipe, direct
from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.errors import CheckpointError
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.safetensors import Stored
from irloom.ir.weights import Reshape, Tensor, split_rows


def open_checkpoint(header: Header, model: Any, *, whole: bool = True) -> MappedCheckpoint:
    """The weights of ``model``, a library model with parameters on the meta device, in a GGUF file.

    ``whole`` says that the file is of this very model: then a tensor without a place in it is an error.
    """
    from transformers.integrations.gguf.utils import get_gguf_conversion_mapping, is_gguf_arch_supported

    raw = GGUFTensors(header)
    raw.check()
    if header.architecture in ARCHITECTURES:
        recipes = _known(raw, model)
    elif is_gguf_arch_supported(header.architecture):
        recipes = library_recipes(raw, model, get_gguf_conversion_mapping(header.architecture, model.config))
    else:
        recipes = _processed(raw, model)
    return fit(raw, recipes, model, unused=_unused(raw, model) if whole else None)


def _unused(raw: GGUFTensors, model: Any) -> list[str]:
    """Tensors that are no weights of the model: rotary factors, and layers that predict further tokens."""
    layers = f"blk.{model.config.num_hidden_layers}."
    extra = (
        [n for n in raw.names() if n.startswith(layers)] if raw.header.fact("nextn_predict_layers", 0) else []
    )
    return [*FACTORS, *extra]


def _known(raw: GGUFTensors, model: Any) -> dict[str, Recipe]:
    """Recipes for an architecture that irloom knows: names from the package, layouts from ours."""
    import gguf
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS

    arch = next((k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == raw.header.architecture), None)
    if arch is None:
        raise CheckpointError(
            f"{raw.path}: the gguf package has no names for `{raw.header.architecture}`",
            hint="pip install -U gguf",
        )
    like = ARCHITECTURES[raw.header.architecture].like
    processor = TENSOR_PROCESSORS[like](config=model.config.to_dict()) if like else None
    names, stored = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers), set(raw.names())
    recipes: dict[str, Recipe] = {}
    for target, tensor in model.state_dict().items():
        wanted = tuple(tensor.shape)
        expr = expression(raw, model, target, wanted)
        if expr is not None:
            recipes[target] = Expressed(expr)
            continue
        name = names.get_name(target, try_suffixes=(".weight", ".bias"))
        if name in stored:
            made = Processed(target, (name,), processor, {}, wanted)
            plain = processor is None or made.untouched()
            recipes[target] = _as_wanted(raw, name, wanted) if plain else made
    return recipes


def _as_wanted(raw: GGUFTensors, name: str, wanted: tuple[int, ...]) -> Expressed:
    """A stored tensor, with dims of 1 put in or left out where the library's differ in that."""
    dims = raw.dims(name)
    same = [d for d in dims if d != 1] == [d for d in wanted if d != 1]
    return Expressed(Reshape(Tensor(name), wanted)) if same and dims != wanted else direct(name)


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
