"""Trace a Hugging Face model: its config, no weights, no model code of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irloom.frontends.core import TraceOptions
from irloom.frontends.store import stored_trace
from irloom.ir.elem import Elem, elem_of
from irloom.ir.graph import Module

if TYPE_CHECKING:
    import torch
    from torch import nn


def trace_hf(
    source: str | Path | nn.Module | Any,
    dtype: Elem | torch.dtype | None = None,
    layers: int | None = None,
    check: bool = True,
    trust_remote_code: bool = False,
) -> Module:
    """The program of a directory or hub id, of a config object, or of a module that is already built.

    ``dtype`` is that of weights and activations, by default the checkpoint's; ``layers`` keeps only the first
    ones. Unless ``check`` is off, a config's architecture is first compared with the library on a tiny model,
    and a module with its own logits.
    ``trust_remote_code`` lets a directory run Python code of its own. Traces of directories and configs are
    kept on disk.
    """
    from torch import nn

    elem = dtype if dtype is None or isinstance(dtype, Elem) else elem_of(dtype)
    options = TraceOptions(dtype=elem, layers=layers, check=check, trust=trust_remote_code)
    if isinstance(source, nn.Module):
        from irloom.frontends.hf.module import trace_module

        return trace_module(source, options)
    if isinstance(source, str | Path):
        from irloom.frontends.hf.hub import find

        return trace_directory(find(str(source)), options)
    return trace_config(source, options)


def trace_directory(path: Path, options: TraceOptions) -> Module:
    """Trace the model in a directory; the library is not even imported when the trace is in the cache."""
    from irloom.frontends.hf.checkpoint import open_raw, read_config
    from irloom.frontends.hf.config_fields import says_auto, stored_dtype
    from irloom.frontends.hf.remote import code_key

    file = path / "config.json"
    if not file.is_file():
        return trace_config(read_config(path), options)
    key = file.read_bytes().decode("utf-8", errors="replace") + code_key(path, options.trust)
    if '"auto"' in key and says_auto(file):
        key += str(stored_dtype(open_raw(path)))
    module = stored_trace(key, options, lambda: _trace(read_config(path, options.trust), options))
    module.model = path.resolve().name
    return module


def trace_config(config: Any, options: TraceOptions) -> Module:
    """Trace the causal language model of a config object of the library."""
    from irloom.frontends.hf.remote import class_key

    text = f"{type(config).__name__} {json.dumps(config.to_dict(), sort_keys=True, default=str)}"
    return stored_trace(text + class_key(config), options, lambda: _trace(config, options))


def _trace(config: Any, options: TraceOptions) -> Module:
    from irloom.frontends.hf.capture import capture
    from irloom.frontends.hf.importer import import_graph
    from irloom.frontends.hf.selfcheck import check_architecture
    from irloom.frontends.hf.skeleton import skeleton
    from irloom.frontends.hf.tiny import with_layers

    if options.check:
        check_architecture(config)
    kept = config if options.layers is None else with_layers(config, options.layers)
    model = skeleton(kept, model_dtype(config, options))
    name = getattr(config, "name_or_path", "") or getattr(config, "model_type", type(config).__name__)
    return import_graph(capture(model), model, Path(name).name)


def model_dtype(config: Any, options: TraceOptions) -> torch.dtype:
    """What weights and activations are: as asked, else as the checkpoint says, else f32."""
    import torch

    if options.dtype is not None:
        return options.dtype.torch
    said = getattr(config, "dtype", None)
    if isinstance(said, str):
        said = getattr(torch, said, None)
    return said if isinstance(said, torch.dtype) else torch.float32
