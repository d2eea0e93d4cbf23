"""What a frontend is, and which one reads a model. Nothing downstream knows which one ran."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from irloom.frontends.facts import Facts
from irloom.ir.elem import Elem
from irloom.ir.errors import CheckpointError, TraceError
from irloom.ir.plugins import Group, fulfils

if TYPE_CHECKING:
    from irloom.ir.checkpoint import Checkpoint
    from irloom.ir.graph import Module

BUILT_IN = {
    "text": "irloom.frontends.text:Text",
    "gguf": "irloom.frontends.gguf.frontend:Gguf",
    "nemo": "irloom.frontends.nemo.frontend:Nemo",
    "peft": "irloom.frontends.peft.frontend:Peft",
    "hf": "irloom.frontends.hf.frontend:HuggingFace",
}
"""Frontends by name, in the order in which they are asked; loaded only then."""


@dataclass(frozen=True)
class TraceOptions:
    """``dtype`` of weights and activations, by default the checkpoint's; only the first ``layers`` layers;
    whether an architecture is ``check``ed against its library on a tiny model before its trace is used;
    whether the user ``trust``s Python code that the model brings with it.
    """

    dtype: Elem | None = None
    layers: int | None = None
    check: bool = True
    trust: bool = False


class Frontend(Protocol):
    """Reads one kind of model. A package offers its class in the entry-point group ``irloom.frontends``."""

    name: str

    def claims(self, path: Path) -> bool:
        """Whether ``path`` is a model of this kind; looks at names and first bytes, imports nothing heavy."""
        ...

    def trace(self, path: Path, options: TraceOptions) -> Module:
        """The model as a program; ``TraceError`` where it cannot be one."""
        ...

    def checkpoint(self, path: Path, options: TraceOptions) -> Checkpoint:
        """The weights under the names that ``trace`` binds."""
        ...

    def facts(self, path: Path) -> Facts:
        """Where answers end, and how long a sequence may get."""
        ...

    def tokenizer(self, path: Path) -> Path:
        """A directory with the tokenizer's files; ``CheckpointError`` where there is none."""
        ...


def source(model: Any, tokenizer: Any = None, trust: bool = False) -> tuple[Frontend, Path]:
    """What reads a model, and the path that it reads: a path, a hub id, or a module in memory.

    ``tokenizer`` is for a module, which brings none; ``trust`` also fetches a hub model's Python files.
    """
    from irloom.frontends.hf.hub import find
    from irloom.frontends.hf.module import LiveModule

    if not isinstance(model, (str, Path)):
        live = LiveModule(model, tokenizer)
        return live, live.path
    if tokenizer is not None:
        raise CheckpointError(f"{model} has a tokenizer of its own", hint="tokenizer= is for an nn.Module")
    path = find(str(model), trust)
    return frontend_of(path), path


def frontend_of(path: Path) -> Frontend:
    """The frontend that claims ``path``; ``TraceError`` where none does."""
    if not path.exists():
        raise TraceError(f"{path}: no such file or directory", hint="give a path or a hub id")
    asked: list[str] = []
    for frontend in frontends():
        if frontend.claims(path):
            return frontend
        asked.append(frontend.name)
    if path.is_file() and not path.stat().st_size:
        raise TraceError(f"{path}: the file is empty", hint="copy or download it again")
    raise TraceError(
        f"{path}: no frontend claims it (asked: {', '.join(asked)})",
        hint="a model is a directory with config.json, a .gguf, a .nemo or a Megatron checkpoint, or IR text",
    )


def frontends() -> Iterator[Frontend]:
    """Every frontend: irloom's own, then those of installed packages, each loaded when it is its turn."""
    for place in BUILT_IN.values():
        module, _, name = place.partition(":")
        yield getattr(import_module(module), name)()
    yield from PLUGINS.every().values()


PLUGINS = Group[Frontend](
    "irloom.frontends", "frontend", TraceError, fulfils(Frontend), lambda name: name in BUILT_IN
)
"""Frontends of installed packages."""
