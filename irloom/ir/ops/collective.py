"""Communication between the ranks of a mesh axis. On one rank they are the identity."""

from __future__ import annotations

from torch import Tensor

from ..op import op


@op("+*b -> *b")
def all_reduce(x: Tensor, *, axis: str = "tp") -> Tensor:
    """Finish a partial sum over mesh ``axis``: every rank gets the whole sum."""
    return x
