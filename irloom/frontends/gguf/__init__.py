"""GGUF files: ``read_header``, then ``read_config``, ``open_checkpoint`` and ``tokenizer_files``."""

from irloom.frontends.gguf.checkpoint import open_checkpoint
from irloom.frontends.gguf.config import read_config
from irloom.frontends.gguf.header import find_gguf, read_header
from irloom.frontends.gguf.tokenizer import tokenizer_files

__all__ = ["find_gguf", "open_checkpoint", "read_config", "read_header", "tokenizer_files"]
