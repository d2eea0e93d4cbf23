"""How a tensor of a model comes from the tensors of a file, and a checkpoint made of such recipes.

A recipe is written down from names and dims alone, and run when its tensor is wanted, so that one tensor of
the model is in memory at a time, or some rows of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from irloom.ir.checkpoint import Checkpoint, absent
from irloom.ir.elem import Elem, Quant, elem_of
from irloom.ir.errors import CheckpointError
from irloom.ir.weights import (
    Tensor,
    WeightExpr,
    expression_blocks,
    kept_quantized,
    materialize,
    split_rows,
    tensor_names,
    weight_type,
)

if TYPE_CHECKING:
    import torch

    from irloom.ir.quantized import QuantizedTensor
    from irloom.ir.safetensors import Stored

SHOWN = 4  # names of a list that an error shows


class Recipe(Protocol):
    """How one tensor of a model comes from tensors of a file."""

    @property
    def sources(self) -> tuple[str, ...]: ...

    def dims(self, raw: Checkpoint) -> tuple[int, ...] | None:
        """Its dims as they follow from the file; None where only the model knows them."""
        ...

    def elem(self, raw: Checkpoint) -> Elem: ...

    def read(self, raw: Checkpoint) -> torch.Tensor: ...

    def blocks(self, raw: Checkpoint, rows: slice) -> Iterator[torch.Tensor]: ...

    def read_quantized(self, raw: Checkpoint, quant: Quant) -> QuantizedTensor | None: ...

    def stored(self, raw: Checkpoint) -> Stored | None: ...


@dataclass(frozen=True)
class Expressed:
    """A tensor that an expression makes of the file's: joined, cut or stacked, block by block."""

    expr: WeightExpr

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(tensor_names(self.expr)))

    def dims(self, raw: Checkpoint) -> tuple[int, ...]:
        return tuple(d for d in weight_type(self.expr, raw).dims if isinstance(d, int))

    def elem(self, raw: Checkpoint) -> Elem:
        return weight_type(self.expr, raw).plain

    def read(self, raw: Checkpoint) -> torch.Tensor:
        return cast("torch.Tensor", materialize(self.expr, raw))

    def blocks(self, raw: Checkpoint, rows: slice) -> Iterator[torch.Tensor]:
        return expression_blocks(self.expr, raw, rows)

    def read_quantized(self, raw: Checkpoint, quant: Quant) -> QuantizedTensor | None:
        return kept_quantized(self.expr, raw, quant)

    def stored(self, raw: Checkpoint) -> Stored | None:
        return raw.stored(self.expr.name) if isinstance(self.expr, Tensor) else None


def direct(source: str) -> Expressed:
    """A tensor that the file holds as it is, perhaps under another name."""
    return Expressed(Tensor(source))


@dataclass(frozen=True)
class Converted:
    """A tensor that a converter of the library makes; ``inputs`` are (source pattern, name in the file)."""

    target: str
    key: str
    converter: Any
    inputs: tuple[tuple[str, str], ...]
    model: Any

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(name for _, name in self.inputs)

    def dims(self, raw: Checkpoint) -> tuple[int, ...]:
        return tuple(self.made(raw)[self.target].shape)

    def elem(self, raw: Checkpoint) -> Elem:
        return elem_of(self.made(raw)[self.target].dtype)

    def read(self, raw: Checkpoint) -> torch.Tensor:
        return self._convert({name: raw.read(name) for name in self.sources})[self.target]

    def blocks(self, raw: Checkpoint, rows: slice) -> Iterator[torch.Tensor]:
        return split_rows(self.read(raw), rows)

    def read_quantized(self, raw: Checkpoint, quant: Quant) -> QuantizedTensor | None:
        return None

    def stored(self, raw: Checkpoint) -> Stored | None:
        return None

    def made(self, raw: Checkpoint) -> dict[str, torch.Tensor]:
        """Every tensor that the converter makes of these inputs, on the meta device."""
        import torch

        meta = {n: torch.empty(raw.dims(n), dtype=raw.elem(n).torch, device="meta") for n in self.sources}
        try:
            return self._convert(meta)
        except (ValueError, RuntimeError, AttributeError) as error:
            facts = ", ".join(f"`{name}` {list(raw.dims(name))}" for name in self.sources[:SHOWN])
            raise CheckpointError(f"{raw.path}: `{self.key}` cannot be made of {facts}: {error}") from None

    def _convert(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        converter = deepcopy(self.converter)
        for pattern, name in self.inputs:
            converter.add_tensor(self.key, name, pattern, tensors.pop(name))
        made = converter.convert(self.key, model=self.model, config=self.model.config)
        return {name: t[0] if isinstance(t, list) else t for name, t in made.items()}


class MappedCheckpoint:
    """A checkpoint under a model's own names. Tensors it ties share one recipe."""

    def __init__(
        self, raw: Checkpoint, recipes: Mapping[str, Recipe], model_dims: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.raw, self.recipes, self._dims = raw, recipes, model_dims
        order = {name: at for at, name in enumerate(raw.names())}
        self._names = sorted(recipes, key=lambda name: order[recipes[name].sources[0]])

    @property
    def path(self) -> Path:
        return self.raw.path

    def over(self, raw: Checkpoint) -> MappedCheckpoint:
        """The same recipes on other values of the same names, dims and elements."""
        return MappedCheckpoint(raw, self.recipes, self._dims)

    def names(self) -> Sequence[str]:
        return self._names

    def recipe(self, name: str) -> Recipe:
        if name not in self.recipes:
            raise absent(self, name)
        return self.recipes[name]

    def dims(self, name: str) -> tuple[int, ...]:
        return self.recipe(name).dims(self.raw) or self._dims[name]

    def elem(self, name: str) -> Elem:
        return self.recipe(name).elem(self.raw)

    def read(self, name: str) -> torch.Tensor:
        out = self.recipe(name).read(self.raw)
        if tuple(out.shape) != self.dims(name):
            raise misfit(self.raw, name, self.recipe(name), tuple(out.shape), self.dims(name))
        return out

    def blocks(self, name: str, rows: slice = slice(None)) -> Iterator[torch.Tensor]:
        return self.recipe(name).blocks(self.raw, rows)

    def read_quantized(self, name: str, quant: Quant) -> QuantizedTensor | None:
        return self.recipe(name).read_quantized(self.raw, quant)

    def stored(self, name: str) -> Stored | None:
        return self.recipe(name).stored(self.raw)

    def spelled(self, name: str) -> tuple[WeightExpr, Checkpoint] | None:
        recipe = self.recipe(name)
        return (recipe.expr, self.raw) if isinstance(recipe, Expressed) else None


def listed(names: Sequence[str]) -> str:
    """The first names of a list, for an error."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"`{n}`" for n in names[:SHOWN]) + more


def misfit(
    raw: Checkpoint, name: str, recipe: Recipe, found: tuple[int, ...], wanted: tuple[int, ...]
) -> CheckpointError:
    """The error for a tensor that comes in other dims than the model's."""
    at = raw.stored(recipe.sources[0])
    made = "" if recipe.sources == (name,) else f", from {listed(recipe.sources)},"
    path = at.path if at else raw.path
    return CheckpointError(
        f"{path}: `{name}`{made} is {list(found)}, but the config makes it {list(wanted)}",
        hint="config.json is that of another model, or the file is damaged",
    )
