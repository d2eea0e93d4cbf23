"""Blocks of the library that are replaced while a model is captured, one file per kind of block."""

from irloom.frontends.hf.blocks import dbrx, jetmoe, llama4, longcat
from irloom.frontends.hf.blocks.core import REPLACEMENTS, replaced_blocks, replaces

__all__ = ["REPLACEMENTS", "dbrx", "jetmoe", "llama4", "longcat", "replaced_blocks", "replaces"]
