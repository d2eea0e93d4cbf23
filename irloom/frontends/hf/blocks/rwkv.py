"""RWKV divides its deeper weights by powers of two, in place and at the first call, for f16 to hold."""

from __future__ import annotations

from typing import Any

from irloom.frontends.hf.blocks.core import replaces


@replaces("RwkvModel", method="_rescale_layers")
def keep_scale(self: Any) -> None:
    """Weights stay as they are, and so do hidden states: both are scaled, or none is."""
