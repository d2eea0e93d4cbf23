"""Blocks that no program without values can stand for, and why."""

from __future__ import annotations

from typing import Any, NoReturn

from irloom.frontends.hf.blocks.core import replaces
from irloom.ir.errors import TraceError

HINT = "no program made without values computes this; another architecture does"


class Refused(TraceError):
    """No trace would be right, whatever else is changed."""


@replaces("BltModel")
def patches(self: Any, *_: Any, **__: Any) -> NoReturn:
    """Byte latent transformer."""
    raise Refused(
        f"{type(self).__name__} cuts tokens into patches by what they are: how many patches there are, and"
        " which token is in which, depends on the tokens",
        hint=HINT,
    )


@replaces("ReformerModel")
def hashes(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Reformer, unless all its layers are local."""
    if "lsh" in self.config.attn_layers:
        raise Refused(
            f"{type(self).__name__} lets a token see those that a random hash sorts next to it, in chunks of"
            " the whole sequence: one more token moves the others",
            hint=HINT,
        )
    return type(self).forward(self, *args, **kwargs)
