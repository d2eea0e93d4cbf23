"""A Megatron model as one of the library's: its config, and its weights under the library's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irloom.frontends.nemo.archive import Files
from irloom.frontends.nemo.canonical import canonical
from irloom.frontends.nemo.families import Family, family_of
from irloom.frontends.nemo.hybrid import as_decoder
from irloom.frontends.nemo.layout import Contents, read_contents
from irloom.frontends.nemo.model import Model
from irloom.frontends.nemo.rules import Made, apply
from irloom.frontends.nemo.settings import read_settings
from irloom.ir.checkpoint import absent, row_steps
from irloom.ir.elem import Elem, Quant
from irloom.ir.errors import CheckpointError
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.safetensors import Stored

if TYPE_CHECKING:
    import torch

    from irloom.frontends.hf.recipes import MappedCheckpoint


@dataclass(frozen=True)
class Opened:
    """A checkpoint of NeMo or Megatron, read as far as its headers."""

    files: Files
    contents: Contents
    model: Model
    family: Family

    def config(self) -> Any:
        """The library's config object."""
        from transformers import AutoConfig

        fields = self.family.config(self.model)
        try:
            config = AutoConfig.for_model(self.family.model_type, **fields)
        except Exception as error:
            raise CheckpointError(
                f"{self.files.path}: no config of `{self.family.model_type}` can be made of it:"
                f" {' '.join(str(error).split())}",
                hint="the checkpoint's config is not that of its tensors",
            ) from None
        config.dtype = self.model.elem.torch
        config.name_or_path = str(self.files.path)
        return config

    def weights(self) -> HFWeights:
        """The weights under the names of the library's files."""
        return HFWeights(self.files.path, apply(self.family.rules, self.model))


def open_path(path: Path) -> Opened:
    """Read a checkpoint's config and headers, and no weight; ``CheckpointError`` says what does not fit."""
    files = Files(path)
    contents = read_contents(files)
    settings = read_settings(contents.fields, path)
    tensors = as_decoder(canonical(contents.stored, path), settings.pattern)
    model = Model(path, settings, tensors)
    return Opened(files, contents, model, family_of(model))


def open_checkpoint(opened: Opened, model: Any, *, whole: bool = True) -> MappedCheckpoint:
    """The weights of ``model``, a library model with parameters on the meta device.

    ``whole`` says that the checkpoint is of this very model: then a tensor without a place in it is an error.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    from irloom.frontends.hf.conversion import library_recipes
    from irloom.frontends.hf.fit import fit

    raw = opened.weights()
    recipes = library_recipes(raw, model, get_model_conversion_mapping(model))
    return fit(raw, recipes, model, unused=() if whole else None)


class HFWeights:
    """Tensors by the names that the library's own checkpoints have; each is built when it is read."""

    def __init__(self, path: Path, made: Mapping[str, Made]) -> None:
        self.path, self._made = path, made

    def names(self) -> Sequence[str]:
        return list(self._made)

    def made(self, name: str) -> Made:
        if name not in self._made:
            raise absent(self, name)
        return self._made[name]

    def dims(self, name: str) -> tuple[int, ...]:
        return self.made(name).dims

    def elem(self, name: str) -> Elem:
        return self.made(name).elem

    def read(self, name: str) -> torch.Tensor:
        return self.made(name).read()

    def blocks(self, name: str, rows: slice = slice(None)) -> Iterator[torch.Tensor]:
        made = self.made(name)
        for start, stop in row_steps(made.dims, made.elem, rows):
            yield made.rows(start, stop)

    def read_quantized(self, name: str, quant: Quant) -> QuantizedTensor | None:
        return None

    def stored(self, name: str) -> Stored | None:
        return self.made(name).stored()
