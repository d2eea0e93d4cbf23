"""The frontend for adapter directories, and any frontend with an adapter merged into its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from irloom.frontends.core import Frontend, TraceOptions, frontend_of
from irloom.frontends.facts import Facts, fingerprint
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.errors import CheckpointError
from irloom.ir.graph import Module


@dataclass(frozen=True)
class Merged:
    """``base`` with the adapter in a directory merged into the weights. Programs are those of ``base``."""

    base: Frontend
    adapter: Path
    name = "peft"

    def claims(self, path: Path) -> bool:
        return self.base.claims(path)

    def trace(self, path: Path, options: TraceOptions) -> Module:
        from irloom.frontends.peft.adapter import read_config

        read_config(self.adapter)  # an adapter that is not merged is refused before the work
        return self.base.trace(path, options)

    def checkpoint(self, path: Path, options: TraceOptions) -> Checkpoint:
        from irloom.frontends.peft import merged, read_adapter

        return merged(self.base.checkpoint(path, options), read_adapter(self.adapter))

    def facts(self, path: Path) -> Facts:
        return self.base.facts(path)

    def tokenizer(self, path: Path) -> Path:
        """The adapter's own, where training saved one beside it; else the model's."""
        own = (self.adapter / "tokenizer.json").is_file()
        return self.adapter if own else self.base.tokenizer(path)


class Peft:
    """An adapter directory given as the model: the model that it names, with the adapter merged."""

    name = "peft"

    def claims(self, path: Path) -> bool:
        from irloom.frontends.peft.adapter import is_adapter

        return is_adapter(path)

    def trace(self, path: Path, options: TraceOptions) -> Module:
        return _merged(path).trace(base_of(path), options)

    def checkpoint(self, path: Path, options: TraceOptions) -> Checkpoint:
        return _merged(path).checkpoint(base_of(path), options)

    def facts(self, path: Path) -> Facts:
        return _merged(path).facts(base_of(path))

    def tokenizer(self, path: Path) -> Path:
        return _merged(path).tokenizer(base_of(path))


def _merged(path: Path) -> Merged:
    return Merged(frontend_of(base_of(path)), path)


def base_of(path: Path) -> Path:
    """The model that an adapter directory names: a path on this disk or a hub id."""
    from irloom.frontends.hf.hub import find
    from irloom.frontends.peft.adapter import is_adapter, read_config

    named = read_config(path).get("base_model_name_or_path")
    base = find(named) if isinstance(named, str) and named else None
    if base is None or not base.exists() or is_adapter(base):
        raise CheckpointError(
            f"{path}: its adapter_config.json names {json.dumps(named)} as its model, which is not here",
            hint="give the model, and the adapter with `--adapter`",
        )
    return base


def identity(path: Path, adapter: Path | None) -> str:
    """A fingerprint of all that a model's weights come from."""
    from irloom.frontends.peft.adapter import is_adapter

    parts = [path, *([adapter] if adapter else []), *([base_of(path)] if is_adapter(path) else [])]
    return " ".join(map(fingerprint, parts))
