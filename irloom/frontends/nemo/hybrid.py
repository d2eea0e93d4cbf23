"""Hybrid stacks that are plain decoders: attention and MLP as layers of their own, ``*-*-``.

Megatron-core is moving all its decoders into such stacks, in which layer i of a decoder is two.
"""

from __future__ import annotations

import re

from irloom.frontends.nemo.laid import Laid

_PAIRS = re.compile(r"(\*[-E])+")
_LAYER = re.compile(r"(?<=^decoder\.layers\.)\d+(?=\.)")


def as_decoder(tensors: dict[str, Laid], pattern: str) -> dict[str, Laid]:
    """The tensors with layers numbered as a decoder's, where ``pattern`` alternates; else as they are."""
    if not _PAIRS.fullmatch(pattern):
        return tensors
    return {_LAYER.sub(lambda m: str(int(m[0]) // 2), name): tensor for name, tensor in tensors.items()}
