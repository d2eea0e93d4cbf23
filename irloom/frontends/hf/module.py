"""A module given from Python: traced as it is, with its weights where they are in memory."""

from __future__ import annotations

import copy
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irloom.frontends.core import TraceOptions
from irloom.frontends.facts import DEFAULT_CONTEXT, LENGTHS, Facts
from irloom.ir.errors import CheckpointError, TraceError

if TYPE_CHECKING:
    from torch import nn

    from irloom.ir.checkpoint import Checkpoint
    from irloom.ir.graph import Module

ANY = 1 << 30
"""A length that is no limit."""


def trace_module(model: nn.Module, options: TraceOptions) -> Module:
    """Trace a model that is already built, as it is in ``eval()``.

    Where its weights have values, and unless ``check`` is off, its own logits are compared with those of the
    trace. ``dtype`` makes the trace one of the model in that element. Nothing is kept on disk.
    """
    import torch

    from irloom.frontends.hf.calling import from_library, is_flat
    from irloom.frontends.hf.capture import capture
    from irloom.frontends.hf.importer import import_graph
    from irloom.frontends.hf.selfcheck import check_module

    if options.layers is not None:
        raise TraceError("a built module is traced whole", hint="build it with fewer layers")
    dtype = None if options.dtype is None else options.dtype.torch
    if dtype is not None and any(p.dtype != dtype for p in model.parameters() if p.is_floating_point()):
        model = recast(model, dtype)
    was_training = {m for m in model.modules() if m.training}
    model.eval()
    try:
        flat = not from_library(model) and is_flat(model)
        module = import_graph(capture(model, flat=flat), model, type(model).__name__)
        if options.check and not any(p.device == torch.device("meta") for p in model.parameters()):
            check_module(model, module, flat, longest=min(context(module), _said_length(model)))
        return module
    finally:
        for m in was_training:
            m.training = True


def recast(model: nn.Module, dtype: Any) -> nn.Module:
    """A copy of ``model`` in another element, its parameters on the meta device; buffers have values."""
    from torch import nn

    def like(p: nn.Parameter) -> nn.Parameter:
        kind = dtype if p.is_floating_point() else p.dtype
        return nn.Parameter(p.detach().to("meta", kind), requires_grad=False)

    memo: dict[int, Any] = {id(p): like(p) for p in model.parameters()}
    made = copy.deepcopy(model, memo)
    for owner in made.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if buffer.is_floating_point():
                owner._buffers[name] = buffer.to(dtype)
    return made


def context(module: Module) -> int:
    """How long a sequence may get by the tables that its positions index: the rows of the shortest one."""
    made = {node.result for node in module.main.nodes if node.op.name == "positions"}
    read = [n.values for n in module.main.nodes if n.op.name == "embedding" and n.values[0] in made]
    rows = [table.type.dims[0] for _, table in read]
    return min((n for n in rows if isinstance(n, int)), default=ANY)


class LiveModule:
    """The frontend of one module in memory. It claims no path; ``path`` is only what messages call it."""

    name = "module"

    def __init__(self, model: nn.Module, tokenizer: Any = None) -> None:
        if not callable(getattr(model, "forward", None)):
            raise TraceError(
                f"{type(model).__name__} is no model with weights",
                hint="give a path, a hub id or an nn.Module",
            )
        self.model, self._tokenizer = model, tokenizer
        self.path = Path(f"<{type(model).__name__} in memory>")
        self._context = ANY

    def claims(self, path: Path) -> bool:
        return False

    def trace(self, path: Path, options: TraceOptions) -> Module:
        module = trace_module(self.model, options)
        self._context = context(module)
        return module

    def checkpoint(self, path: Path, options: TraceOptions) -> Checkpoint:
        from irloom.frontends.hf.live import LiveCheckpoint

        return LiveCheckpoint(self.model)

    def facts(self, path: Path) -> Facts:
        """By the module's ``config``, where it has one, its tables of positions, and its tokenizer."""
        eos = _field(self.model, ("eos_token_id",))
        eos = getattr(self._tokenizer, "eos_token_id", None) if eos is None else eos
        ends = () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)
        longest = min(_said_length(self.model), self._context)
        return Facts(ends, DEFAULT_CONTEXT if longest == ANY else longest)

    def tokenizer(self, path: Path) -> Path:
        given = self._tokenizer
        if given is None:
            raise CheckpointError("no tokenizer was given with the module", hint="LLM(module, tokenizer=...)")
        if isinstance(given, str | Path):
            place = Path(given)
            folder = place.parent if place.is_file() else place
            if not (folder / "tokenizer.json").is_file():
                raise CheckpointError(f"{place}: no tokenizer.json")
            return folder
        folder = Path(tempfile.mkdtemp(prefix="irloom-tokenizer-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        if hasattr(given, "save_pretrained"):
            given.save_pretrained(folder)
        else:
            given.save(str(folder / "tokenizer.json"))
        return folder


def _said_length(model: nn.Module) -> int:
    said = _field(model, LENGTHS)
    return said if isinstance(said, int) else ANY


def _field(model: nn.Module, names: tuple[str, ...]) -> Any:
    """The first of these fields that the module's config has, be it an object or a mapping."""
    config: Any = getattr(model, "config", None)
    read = config.get if isinstance(config, Mapping) else lambda name: getattr(config, name, None)
    return next((found for name in names if (found := read(name)) is not None), None)
