"""What the file of weights holds: for each parameter one tensor, or the parts of a quantized one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from irloom.ir.elem import Elem
from irloom.ir.graph import Param
from irloom.ir.quantized import QuantizedTensor, pack4
from irloom.ir.weight_expr import Tensor, tensor_names

if TYPE_CHECKING:
    import torch

Part = Literal["values", "scales", "zeros", "shifts"]


@dataclass(frozen=True)
class Stored:
    """A tensor of the file: ``part`` of what ``param`` is, in ``elem``.

    Each scale of a row is there ``repeat`` times, then the last two dims are exchanged if ``transposed``.
    ``shifts`` are the scales times the zeros, of a scheme whose zeros are no integers. With ``pairs``
    four-bit entries lie as bytes, two in each.
    """

    name: str
    param: Param
    part: Part
    elem: Elem
    dims: tuple[int, ...]
    transposed: bool = False
    repeat: int = 1
    pairs: bool = False

    def named(self, name: str) -> Stored:
        """The same under another name."""
        return replace(self, name=name)

    @property
    def nbytes(self) -> int:
        """Bytes in the file; four-bit entries lie two a byte."""
        count = self.elem.nbytes(self.dims)
        assert isinstance(count, int)
        return count

    def of(self, value: torch.Tensor | QuantizedTensor) -> torch.Tensor:
        """What is written, of the value of ``param``."""
        if isinstance(value, QuantizedTensor):
            x = _part(value, self.part)
        else:
            x = value
        x = x.repeat_interleave(self.repeat, -1) if self.repeat > 1 else x
        x = x.transpose(-1, -2) if self.transposed else x
        if self.pairs:
            return pack4(x)
        x = x.to(self.elem.torch) if self.elem.bits != 4 else x
        return pack4(_even(x.reshape(-1))) if self.elem.bits == 4 else x.contiguous()


def _even(x: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import pad

    return pad(x, (0, len(x) % 2))


def _part(value: QuantizedTensor, part: Part) -> torch.Tensor:
    if part == "values":
        return value.values
    if part == "scales":
        return value.scales.float()
    assert value.zeros is not None
    return value.zeros if part == "zeros" else value.zeros.float() * value.scales.float()


def stored_name(p: Param) -> str:
    """What a weight is called: its tensor in the checkpoint, where it is one as it is; else its own name."""
    if p.weight is not None:
        names = list(tensor_names(p.weight))
        if isinstance(p.weight, Tensor) or len(names) == 1:
            return names[0]
    return p.name


def plain(p: Param, elem: Elem | None = None) -> Stored:
    """A weight that is not quantized, stored in ``elem`` (by default its own)."""
    dims = tuple(d for d in p.type.dims if isinstance(d, int))
    assert len(dims) == p.type.rank
    return Stored(stored_name(p), p, "values", elem or p.type.plain, dims)
