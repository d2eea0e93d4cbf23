"""The library's own conversion of checkpoints, as recipes.

The names and layouts of a file and of the library's module differ: renamed prefixes, experts stored one by
one, fused projections. The library describes this as transforms (``transformers.conversion_mapping``). Those
that stack, join and cut are written down as weight expressions, which run in the memory of a few rows; any
other is run as it is, one tensor of the model at a time. Each is tried on the meta device first: a misfit is
found before a weight is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from irloom.frontends.hf.recipes import Converted, Expressed, Recipe, direct
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.weights import Concat, Reshape, Slice, Tensor, WeightExpr, weight_type


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
            recipes.setdefault(renamed, direct(name))
        elif renamed in wanted and pattern is not None:
            inputs.setdefault(renamed, []).append((pattern, name))
    for key, sources in inputs.items():
        recipes |= _made(raw, Converted(key, key, by_pattern[sources[0][0]], tuple(sources), model))
    return recipes


def _made(raw: Checkpoint, first: Converted) -> dict[str, Recipe]:
    """A recipe for each tensor that a converter makes: an expression where its operations are known ones."""
    made = {name: tuple(tensor.shape) for name, tensor in first.made(raw).items()}
    exprs = _expressions(raw, first, list(made.values()))
    if exprs is not None:
        return {name: Expressed(expr) for name, expr in zip(made, exprs, strict=True)}
    return {name: Converted(name, first.key, first.converter, first.inputs, first.model) for name in made}


@dataclass(frozen=True)
class _Value:
    """What one source pattern has come to: tensors in order, perhaps stacked along a new first dim."""

    parts: tuple[WeightExpr, ...]
    stacked: bool = False

    def expr(self, raw: Checkpoint) -> WeightExpr:
        if not self.stacked:
            return self.parts[0]
        dims = [d for d in weight_type(self.parts[0], raw).dims if isinstance(d, int)]
        return Concat(tuple(Reshape(part, (1, *dims)) for part in self.parts), 0)


def _expressions(raw: Checkpoint, first: Converted, wanted: list[tuple[int, ...]]) -> list[WeightExpr] | None:
    """The tensors of dims ``wanted`` that a converter makes, in its order; None where no expression does."""
    if len({raw.elem(name) for name in first.sources}) > 1:
        return None
    values: dict[str, _Value] = {}
    for pattern, name in first.inputs:
        earlier = values.get(pattern, _Value(()))
        values[pattern] = _Value((*earlier.parts, Tensor(name)))
    ordered = [values[p] for p in first.converter.source_patterns if p in values]
    for op in first.converter.operations:
        done = _operate(raw, op, ordered, wanted)
        if done is None:
            return None
        ordered = done
    if any(len(v.parts) > 1 and not v.stacked for v in ordered):
        return None
    exprs = [value.expr(raw) for value in ordered]
    return exprs if [weight_type(e, raw).dims for e in exprs] == wanted else None


def _operate(
    raw: Checkpoint, op: Any, values: list[_Value], wanted: list[tuple[int, ...]]
) -> list[_Value] | None:
    """One operation of the library on expressions; None for one that they do not hold."""
    from transformers import core_model_loading as library

    kind, dim = type(op), getattr(op, "dim", 0)
    if kind is library.MergeModulelist and dim == 0 and not any(v.stacked for v in values):
        return [_Value(v.parts, stacked=True) for v in values]
    if kind is library.Concatenate and all(v.stacked for v in values) and dim:
        if len({len(v.parts) for v in values}) > 1:
            return None
        rows = zip(*(v.parts for v in values), strict=True)
        return [_Value(tuple(Concat(row, dim - 1) for row in rows), stacked=True)]
    if kind is library.Concatenate:
        parts = [part for v in values for part in ([v.expr(raw)] if v.stacked else v.parts)]
        return [_Value((Concat(tuple(parts), dim),))]
    if kind in (library.Chunk, library.Split) and len(values) == 1:
        whole, at, cut = values[0].expr(raw), 0, list[_Value]()
        for dims in wanted:
            cut.append(_Value((Slice(whole, dim, at, at + dims[dim]),)))
            at += dims[dim]
        return cut
    return None
