"""A library model without its weights: parameters on the meta device, computed buffers with their values."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from irloom.frontends.hf.remote import TRUSTED
from irloom.ir.errors import TraceError


def skeleton(config: Any, dtype: torch.dtype) -> nn.Module:
    """Build the causal language model of ``config`` without memory for its weights.

    Buffers stay real, because rotary frequencies and embedding scales are computed by constructors and are
    in no checkpoint. ``config`` stays as it is.
    """
    return skeleton_of(causal_class(config), causal_config(config), dtype)


def skeleton_of(kind: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    """The same of any class of the library, for the config that it takes."""
    config = copy.deepcopy(config)  # the library writes its dtype into it
    with meta_parameters():
        model = _constructed(kind, config, dtype)
    return model.eval().requires_grad_(False)


def build(config: Any, dtype: torch.dtype) -> Any:
    """The library's model of a config; what its constructors raise becomes a ``TraceError``."""
    return _constructed(causal_class(config), causal_config(config), dtype)


def _constructed(model: Any, config: Any, dtype: torch.dtype) -> Any:
    try:
        return model._from_config(config, dtype=dtype, attn_implementation="eager")
    except Exception as error:
        raise TraceError(
            f"{model.__name__} is not built from its config: {type(error).__name__}: {error}".splitlines()[0],
            hint="the library itself refuses it; compare config.json with the class",
        ) from error


def causal_class(config: Any) -> Any:
    """The library's causal language model class for a config, or a ``TraceError`` that names the config."""
    if type(config) in TRUSTED:
        return TRUSTED[type(config)]
    given = causal_config(config)
    found = _listed_class(type(given)) or _class_taking(given) or whole_class(config)
    if found is None:
        kind = getattr(config, "model_type", type(config).__name__)
        raise TraceError(
            f"`{kind}` has no causal language model in this transformers",
            hint="irloom takes models that continue text; if it is one, pass the nn.Module itself",
        )
    return found


def causal_config(config: Any) -> Any:
    """The text part of a multimodal config where a causal class takes just that, else the config itself."""
    if type(config) in TRUSTED:
        return config
    text = config.get_text_config(decoder=True)
    if type(text) is type(config):
        return config
    takes_text = {getattr(_listed_class(kind), "config_class", None) for kind in (type(config), type(text))}
    return text if type(text) in takes_text else config


def _listed_class(kind: type) -> Any:
    """What the library's table of causal models holds for a config class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(kind, None)
    return found[0] if isinstance(found, list | tuple) else found


def _class_taking(config: Any) -> Any:
    """The causal class that takes a text config: in the tables its model stands with all parts."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    home = type(config).__module__
    beside = [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING if kind.__module__ == home]
    return next((c for c in map(_listed_class, beside) if c.config_class is type(config)), None)


def whole_class(config: Any) -> Any:
    """The class of a multimodal model, which reads text alone where no class takes its text part."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
    )

    tables = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING)
    return next((table[type(config)] for table in tables if type(config) in table), None)


LARGE = 1 << 26
"""Entries past which a tensor without values is one of weights."""


class _LargeOnMeta(TorchFunctionMode):
    """Within, ``torch.empty`` of a large size is made on the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty and torch.empty(*args, **{**options, "device": "meta"}).numel() >= LARGE:
            options["device"] = "meta"
        return func(*args, **options)


@contextlib.contextmanager
def meta_parameters() -> Iterator[None]:
    """Every parameter registered inside lands on the meta device; its memory is freed untouched.

    A large one never has any: a system may refuse memory for the experts of a layer that nobody will touch.
    """

    def on_meta(module: nn.Module, name: str, param: nn.Parameter) -> nn.Parameter | None:
        return None if param.is_meta else nn.Parameter(param.to("meta"), requires_grad=False)

    typed: Any = on_meta  # torch declares hooks that return nothing
    hook = register_module_parameter_registration_hook(typed)
    try:
        with _LargeOnMeta():
            yield
    finally:
        hook.remove()


@contextlib.contextmanager
def buffers_on(device: torch.device, model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Move the buffers to ``device`` for the length of a trace, so that one device runs through the model.

    Yields the real values by name. A buffer that the constructor left on meta is not in it.
    """
    values = {name: buffer for name, buffer in model.named_buffers() if not buffer.is_meta}
    try:
        for name, buffer in values.items():
            _assign(model, name, buffer.to(device))
        yield values
    finally:
        for name, buffer in values.items():
            _assign(model, name, buffer)


def _assign(model: nn.Module, name: str, buffer: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    model.get_submodule(owner)._buffers[leaf] = buffer
