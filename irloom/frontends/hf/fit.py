"""Whether a file's tensors are a model's: all there, in its dims, tied where the config ties, none left."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from irloom.frontends.hf.recipes import MappedCheckpoint, Recipe, listed, misfit
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.errors import CheckpointError


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
        head = missing == ["lm_head.weight"]
        raise CheckpointError(
            f"{raw.path}: nothing in it for {listed(missing)} of {type(model).__name__}",
            hint='set "tie_word_embeddings": true in config.json if the head is the embedding'
            if head
            else "the checkpoint is incomplete, or config.json is that of another model",
        )
    for name, recipe in recipes.items():
        found = recipe.dims(raw)
        if name in wanted and found is not None and found != wanted[name]:
            raise misfit(raw, name, recipe, found, wanted[name])
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
    """Whether two recipes make the same values, compared some rows at a time."""
    import torch

    if a.dims(raw) != b.dims(raw) or a.elem(raw) != b.elem(raw):
        return False
    pairs = zip(a.blocks(raw, slice(None)), b.blocks(raw, slice(None)), strict=True)
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
            f"{raw.path}: {type(model).__name__} has no place for {listed(left)}",
            hint="is config.json that of another model?",
        )


def _patterns(patterns: Iterable[str] | None) -> re.Pattern[str] | None:
    joined = "|".join(f"({p})" for p in patterns or ())
    return re.compile(joined) if joined else None
