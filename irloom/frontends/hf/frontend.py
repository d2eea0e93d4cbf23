"""The frontend for Hugging Face directories."""

from __future__ import annotations

from pathlib import Path

from irloom.frontends.core import TraceOptions
from irloom.frontends.facts import Facts, directory_facts
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.graph import Module


class HuggingFace:
    """A directory with config.json, safetensors weights and tokenizer files."""

    name = "hf"

    def claims(self, path: Path) -> bool:
        return (path / "config.json").is_file()

    def trace(self, path: Path, options: TraceOptions) -> Module:
        from irloom.frontends.hf.trace import trace_directory

        return trace_directory(path, options)

    def checkpoint(self, path: Path, options: TraceOptions) -> Checkpoint:
        from irloom.frontends.hf.fitted import fitted

        return fitted(path, options)

    def facts(self, path: Path) -> Facts:
        return directory_facts(path)

    def tokenizer(self, path: Path) -> Path:
        from irloom.frontends.hf.fitted import check_tokenizer
        from irloom.frontends.hf.remote import remote_code

        if not (remote_code(path) and (path / "tokenizer.json").is_file()):
            check_tokenizer(path)  # of a model with code of its own, the library asks for that code here, too
        return path
