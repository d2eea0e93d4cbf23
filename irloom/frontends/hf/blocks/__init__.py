"""Blocks of the library that are replaced while a model is captured, one file per kind of block."""

from irloom.frontends.hf.blocks import (
    aria,
    dbrx,
    deepseek_v4,
    doge,
    griffin,
    jetmoe,
    lightning,
    llama4,
    longcat,
    minimax_m3,
    qwen4,
    refused,
    rwkv,
    xlstm,
    xmod,
    zaya,
)
from irloom.frontends.hf.blocks.core import REPLACEMENTS, replaced_blocks, replaces

__all__ = [
    "REPLACEMENTS",
    "aria",
    "dbrx",
    "deepseek_v4",
    "doge",
    "griffin",
    "jetmoe",
    "lightning",
    "llama4",
    "longcat",
    "minimax_m3",
    "qwen4",
    "refused",
    "replaced_blocks",
    "replaces",
    "rwkv",
    "xlstm",
    "xmod",
    "zaya",
]
