"""A library model's weights as named tensors of a file.

The names and layouts of a file and of the library's module differ: renamed prefixes, experts stored one by
one, fused projections. The library describes this as transforms (``transformers.conversion_mapping``). They
are run here one tensor at a time, and on the meta device first: a misfit is found before a weight is read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from irloom.ir.checkpoint import Checkpoint, absent
from irloom.ir.elem import Elem, Quant, elem_of
from irloom.ir.errors import CheckpointError
from irloom.ir.weights import read_blocks

if TYPE_CHECKING:
    import torch

    from irloom.ir.quantized import QuantizedTensor
    from irloom.ir.safetensors import Stored

_SHOWN = 4  # names of a list that an error shows


class Recipe(Protocol):
    """How one tensor of a model comes from tensors of a file."""

    @property
    def sources(self) -> tuple[str, ...]: ...

    def dims(self, raw: Checkpoint) -> tuple[int, ...] | None:
        """Its dims as they follow from the file; None where only the model knows them."""
        ...

    def elem(self, raw: Checkpoint) -> Elem: ...

    def read(self, raw: Checkpoint) -> torch.Tensor: ...

    def read_quantized(self, raw: Checkpoint, quant: Quant) -> QuantizedTensor | None: ...


@dataclass(frozen=True)
class Direct:
    """A tensor that the file holds as it is, perhaps under another name."""

    source: str

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def dims(self, raw: Checkpoint) -> tuple[int, ...]:
        return raw.dims(self.source)

    def elem(self, raw: Checkpoint) -> Elem:
        return raw.elem(self.source)

    def read(self, raw: Checkpoint) -> torch.Tensor:
        return raw.read(self.source)

    def read_quantized(self, raw: Checkpoint, quant: Quant) -> QuantizedTensor | None:
        return raw.read_quantized(self.source, quant)


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
        return tuple(self._meta(raw).shape)

    def elem(self, raw: Checkpoint) -> Elem:
        return elem_of(self._meta(raw).dtype)

    def read(self, raw: Checkpoint) -> torch.Tensor:
        return self._convert({name: raw.read(name) for name in self.sources})[self.target]

    def read_quantized(self, raw: Checkpoint, quant: Quant) -> QuantizedTensor | None:
        return None

    def _meta(self, raw: Checkpoint) -> torch.Tensor:
        return self.made(raw)[self.target]

    def made(self, raw: Checkpoint) -> dict[str, torch.Tensor]:
        """Every tensor that the converter makes of these inputs, on the meta device."""
        import torch

        meta = {n: torch.empty(raw.dims(n), dtype=raw.elem(n).torch, device="meta") for n in self.sources}
        try:
            return self._convert(meta)
        except (ValueError, RuntimeError, AttributeError) as error:
            facts = ", ".join(f"`{name}` {list(raw.dims(name))}" for name in self.sources[:_SHOWN])
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
        self.raw, self._recipes, self._dims = raw, recipes, model_dims
        order = {name: at for at, name in enumerate(raw.names())}
        self._names = sorted(recipes, key=lambda name: order[recipes[name].sources[0]])

    @property
    def path(self) -> Path:
        return self.raw.path

    def names(self) -> Sequence[str]:
        return self._names

    def recipe(self, name: str) -> Recipe:
        if name not in self._recipes:
            raise absent(self, name)
        return self._recipes[name]

    def dims(self, name: str) -> tuple[int, ...]:
        return self.recipe(name).dims(self.raw) or self._dims[name]

    def elem(self, name: str) -> Elem:
        return self.recipe(name).elem(self.raw)

    def read(self, name: str) -> torch.Tensor:
        out = self.recipe(name).read(self.raw)
        if tuple(out.shape) != self.dims(name):
            raise _misfit(self.raw, name, self.recipe(name), tuple(out.shape), self.dims(name))
        return out

    def read_quantized(self, name: str, quant: Quant) -> QuantizedTensor | None:
        return self.recipe(name).read_quantized(self.raw, quant)

    def stored(self, name: str) -> Stored | None:
        recipe = self.recipe(name)
        return self.raw.stored(recipe.source) if isinstance(recipe, Direct) else None


def library_recipes(raw: Checkpoint, model: Any, transforms: Iterable[Any]) -> dict[str, Recipe]:
    """What the library's loading would do with each tensor of ``raw``, without doing it."""
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    transforms = list(transforms)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    wanted, prefix = model.state_dict(), model.base_model_prefix
    recipes: dict[str, Recipe] = {}
    inputs: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(raw.names(), key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        if renamed not in wanted and name in wanted:
            renamed, pattern = rename_source_key(name, [], [], prefix, wanted)
        if renamed in wanted and pattern is None:
            recipes.setdefault(renamed, Direct(name))
        elif renamed in wanted and pattern is not None:
            inputs.setdefault(renamed, []).append((pattern, name))
    for key, sources in inputs.items():
        converter = by_pattern[sources[0][0]]
        made = Converted(key, key, converter, tuple(sources), model).made(raw)
        recipes |= {target: Converted(target, key, converter, tuple(sources), model) for target in made}
    return recipes


def fit(
    raw: Checkpoint,
    recipes: dict[str, Recipe],
    model: Any,
    *,
    unused: Collection[str] | None = (),
) -> MappedCheckpoint:
    """Check that ``recipes`` make every tensor of ``model`` and leave none of the file, and tie what it ties.

    ``unused`` are tensors of the file that nothing needs to read; None allows any.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _tie(raw, recipes, model)
    optional = _patterns(getattr(model, "_keys_to_ignore_on_load_missing", None))
    missing = [n for n in wanted if n not in recipes and not (optional and optional.search(n))]
    if missing:
        raise CheckpointError(
            f"{raw.path}: nothing in it for {_listed(missing)} of {type(model).__name__}",
            hint="the checkpoint is incomplete, or config.json is that of another model",
        )
    for name, recipe in recipes.items():
        found = recipe.dims(raw)
        if name in wanted and found is not None and found != wanted[name]:
            raise _misfit(raw, name, recipe, found, wanted[name])
    if unused is not None:
        _all_used(raw, recipes, model, unused)
    return MappedCheckpoint(raw, {n: r for n, r in recipes.items() if n in wanted}, wanted)


def _tie(raw: Checkpoint, recipes: dict[str, Recipe], model: Any) -> None:
    """Give tied tensors one recipe; refuse a file that holds both of a tied pair with different values."""
    for target, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if target in recipes and source in recipes:
            if not _equal(raw, recipes[target], recipes[source]):
                raise CheckpointError(
                    f"{raw.path}: `{target}` and `{source}` differ, but config.json ties them",
                    hint='set "tie_word_embeddings": false in config.json',
                )
            recipes[target] = recipes[source]
        elif source in recipes:
            recipes[target] = recipes[source]
        elif target in recipes:
            recipes[source] = recipes[target]


def _equal(raw: Checkpoint, a: Recipe, b: Recipe) -> bool:
    """Whether two recipes make the same values; large ones are compared some rows at a time."""
    import torch

    if a.dims(raw) != b.dims(raw) or a.elem(raw) != b.elem(raw):
        return False
    if not (isinstance(a, Direct) and isinstance(b, Direct)):
        return torch.equal(a.read(raw), b.read(raw))
    pairs = zip(read_blocks(a.source, raw), read_blocks(b.source, raw), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def _all_used(raw: Checkpoint, recipes: Mapping[str, Recipe], model: Any, unused: Collection[str]) -> None:
    used = {source for recipe in recipes.values() for source in recipe.sources}
    ignored = _patterns(
        [
            *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()),
            r"rotary_emb\.inv_freq$",  # buffers that older checkpoints hold and the library now computes
            r"(^|\.)position_ids$",
            r"\.attn\.(masked_)?bias$",
        ]
    )
    left = [
        n for n in raw.names() if n not in used and n not in unused and not (ignored and ignored.search(n))
    ]
    tied = set(model.get_expanded_tied_weights_keys(all_submodels=True))
    if left := [n for n in left if n not in tied]:
        raise CheckpointError(
            f"{raw.path}: {type(model).__name__} has no place for {_listed(left)}",
            hint="is config.json that of another model?",
        )


def _patterns(patterns: Iterable[str] | None) -> re.Pattern[str] | None:
    joined = "|".join(f"({p})" for p in patterns or ())
    return re.compile(joined) if joined else None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{n}`" for n in names[:_SHOWN]) + more


def _misfit(
    raw: Checkpoint, name: str, recipe: Recipe, found: tuple[int, ...], wanted: tuple[int, ...]
) -> CheckpointError:
    at = raw.stored(recipe.sources[0])
    made = "" if recipe.sources == (name,) else f", from {_listed(recipe.sources)},"
    path = at.path if at else raw.path
    return CheckpointError(
        f"{path}: `{name}`{made} is {list(found)}, but the config makes it {list(wanted)}",
        hint="config.json is that of another model, or the file is damaged",
    )
