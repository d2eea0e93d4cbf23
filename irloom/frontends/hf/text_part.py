"""The text part of a multimodal checkpoint: which of its tensors a causal language model is made of.

Such a file holds a vision tower and projections beside the decoder, under prefixes that changed from release
to release. The library's whole model says how each name of the file is meant; where in that model the decoder
sits, found by class, says which tensor of the text model it is.
"""

from __future__ import annotations

from typing import Any

from irloom.frontends.hf.conversion import library_recipes
from irloom.frontends.hf.recipes import Recipe
from irloom.frontends.hf.skeleton import causal_config, skeleton_of, whole_class
from irloom.ir.checkpoint import Checkpoint


def text_recipes(raw: Checkpoint, config: Any, model: Any) -> tuple[dict[str, Recipe], list[str]] | None:
    """Recipes for ``model``, the text part of ``config``'s model, and the names of the file that are others'.

    None where ``model`` is no part of another model.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    kind = whole_class(config)
    if causal_config(config) is config or kind is None or kind is type(model):
        return None
    whole: Any = skeleton_of(kind, config, next(model.parameters()).dtype)
    recipes = library_recipes(raw, whole, get_model_conversion_mapping(whole))
    for target, source in whole.get_expanded_tied_weights_keys(all_submodels=True).items():
        if target not in recipes and source in recipes:
            recipes[target] = recipes[source]
    places = _places(whole, model)
    mine = {name: recipes[place] for name, place in places.items() if place in recipes}
    theirs = [source for place in recipes.keys() - places.values() for source in recipes[place].sources]
    return mine, theirs


def _places(whole: Any, model: Any) -> dict[str, str]:
    """The name of each of ``model``'s tensors in ``whole``: below the part of its class, or of its decoder's.

    What lies outside of the decoder (the head) has the same name in both.
    """
    names = list(model.state_dict())
    if (at := _part(whole, type(model))) is not None:
        return {name: f"{at}.{name}" for name in names}
    inner = f"{model.base_model_prefix}."
    decoder = _part(whole, type(model.base_model))
    if decoder is None:
        return {name: name for name in names}
    return {n: f"{decoder}.{n.removeprefix(inner)}" if n.startswith(inner) else n for n in names}


def _part(whole: Any, kind: type) -> str | None:
    return next((path for path, module in whole.named_modules() if path and type(module) is kind), None)
