"""The frontend for checkpoints of NeMo and Megatron."""

from __future__ import annotations

from pathlib import Path

from irloom.frontends.core import TraceOptions
from irloom.frontends.facts import Facts
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.graph import Module


class Nemo:
    """A ``.nemo`` archive, a NeMo 2 directory, or a distributed checkpoint of Megatron-Bridge or Megatron-LM.

    The model is mapped to the library's class of its architecture and traced as that; see docs/nemo.md.
    """

    name = "nemo"

    def claims(self, path: Path) -> bool:
        from irloom.frontends.nemo.archive import is_archive
        from irloom.frontends.nemo.layout import looks_like_one

        if path.is_dir():
            return looks_like_one({entry.name for entry in path.iterdir()})
        return is_archive(path)

    def trace(self, path: Path, options: TraceOptions) -> Module:
        from irloom.frontends.hf.trace import trace_config
        from irloom.frontends.nemo.checkpoint import open_path

        module = trace_config(open_path(path).config(), options)
        module.model = path.resolve().name.removesuffix(".nemo")
        return module

    def checkpoint(self, path: Path, options: TraceOptions) -> Checkpoint:
        from irloom.frontends.hf.skeleton import skeleton
        from irloom.frontends.hf.tiny import with_layers
        from irloom.frontends.hf.trace import model_dtype
        from irloom.frontends.nemo.checkpoint import open_checkpoint, open_path

        opened = open_path(path)
        config = opened.config()
        kept = config if options.layers is None else with_layers(config, options.layers)
        model = skeleton(kept, model_dtype(config, options))
        return open_checkpoint(opened, model, whole=options.layers is None)

    def facts(self, path: Path) -> Facts:
        from irloom.frontends.nemo.checkpoint import open_path
        from irloom.frontends.nemo.tokenizer import end_tokens

        opened = open_path(path)
        return Facts(end_tokens(opened), opened.model.settings.positions)

    def tokenizer(self, path: Path) -> Path:
        from irloom.frontends.nemo.checkpoint import open_path
        from irloom.frontends.nemo.tokenizer import tokenizer_files

        return tokenizer_files(open_path(path))
