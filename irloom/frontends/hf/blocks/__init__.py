"""Blocks of the library that are replaced while a model is captured, one file per kind of block."""

from irloom.frontends.hf.blocks import dbrx, griffin, jetmoe, lightning, llama4, longcat, rwkv, xlstm, zaya
from irloom.frontends.hf.blocks.core import REPLACEMENTS, replaced_blocks, replaces

__all__ = [
    "REPLACEMENTS",
    "dbrx",
    "griffin",
    "jetmoe",
    "lightning",
    "llama4",
    "longcat",
    "replaced_blocks",
    "replaces",
    "rwkv",
    "xlstm",
    "zaya",
]
