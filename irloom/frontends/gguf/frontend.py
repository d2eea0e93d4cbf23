"""The frontend for GGUF files."""

from __future__ import annotations

from pathlib import Path

from irloom.frontends.core import TraceOptions
from irloom.frontends.facts import Facts, header_facts
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.graph import Module


class Gguf:
    """A ``.gguf`` file or the directory that holds one. Its architecture is traced as the library's class of
    it.
    """

    name = "gguf"

    def claims(self, path: Path) -> bool:
        if path.is_dir():
            return not (path / "config.json").exists() and any(path.glob("*.gguf"))
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"

    def trace(self, path: Path, options: TraceOptions) -> Module:
        from irloom.frontends.gguf.config import read_config
        from irloom.frontends.gguf.header import read_header
        from irloom.frontends.hf.trace import trace_config

        module = trace_config(read_config(read_header(path)), options)
        module.model = path.stem
        return module

    def checkpoint(self, path: Path, options: TraceOptions) -> Checkpoint:
        from irloom.frontends.gguf import open_checkpoint, read_config, read_header
        from irloom.frontends.hf.skeleton import skeleton
        from irloom.frontends.hf.tiny import with_layers
        from irloom.frontends.hf.trace import model_dtype

        header = read_header(path)
        config = read_config(header)
        kept = config if options.layers is None else with_layers(config, options.layers)
        model = skeleton(kept, model_dtype(config, options))
        return open_checkpoint(header, model, whole=options.layers is None)

    def facts(self, path: Path) -> Facts:
        from irloom.frontends.gguf import read_header

        return header_facts(read_header(path).metadata)

    def tokenizer(self, path: Path) -> Path:
        from irloom.frontends.gguf import read_config, read_header, tokenizer_files
        from irloom.frontends.store import cache_dir

        header = read_header(path)
        return tokenizer_files(header, read_config(header), cache_dir())
