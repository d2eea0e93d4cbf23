"""Communication between the ranks of a mesh axis. On one rank they are the identity."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import IRError
from ..op import Attrs, op
from ..signature import Operand
from ..types import Type


@op("+*b -> *b")
def all_reduce(x: Tensor, *, axis: str = "tp") -> Tensor:
    """Finish a partial sum over mesh ``axis``: every rank gets the whole sum."""
    return x


@all_reduce.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    x, axis = operands[0], attrs["axis"]
    if not isinstance(x, Type) or x.partial != axis:
        raise IRError(f"all_reduce: operand `x` is {x}, not a sum split over `{axis}`")
