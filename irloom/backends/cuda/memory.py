"""Where a step's values lie: one block, planned before a step of its size first runs.

A value takes the first gap that holds it, and gives it back behind the launch that reads it last. Steps of
one size put each value where the step before had it, so graphs find it there.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence

import torch

from irloom.ir.dims import Dim, evaluate
from irloom.ir.elem import Elem, Quant
from irloom.ir.types import Type

from .quantized import Operand, Quantized

ALIGN = 256


class Gaps:
    """Which bytes of a block are free. ``most`` is how far it was ever used.

    >>> gaps = Gaps()
    >>> a, b = gaps.take(100), gaps.take(300)
    >>> gaps.give(a, 100)
    >>> a, b, gaps.take(200), gaps.most
    (0, 256, 0, 768)
    """

    def __init__(self) -> None:
        self.free: list[tuple[int, int]] = [(0, 1 << 62)]
        self.most = 0

    def take(self, size: int) -> int:
        """The start of ``size`` bytes."""
        size = aligned(size)
        at = next(i for i, (start, stop) in enumerate(self.free) if stop - start >= size)
        start, stop = self.free[at]
        self.free[at : at + 1] = [(start + size, stop)] if stop - start > size else []
        self.most = max(self.most, start + size)
        return start

    def give(self, start: int, size: int) -> None:
        """These bytes are free again."""
        insort(self.free, (start, start + aligned(size)))
        joined: list[tuple[int, int]] = []
        for gap in self.free:
            if joined and joined[-1][1] == gap[0]:
                joined[-1] = joined[-1][0], gap[1]
            else:
                joined.append(gap)
        self.free = joined


def aligned(size: int) -> int:
    """Bytes that ``size`` bytes take up."""
    return -(-max(size, 1) // ALIGN) * ALIGN


class Block:
    """Memory of ``size`` bytes, and tensors in it."""

    def __init__(self, size: int, device: torch.device | str) -> None:
        self.bytes = torch.zeros(aligned(size), dtype=torch.uint8, device=device)
        self.typed: dict[torch.dtype, torch.Tensor] = {}

    def tensor(self, start: int, dims: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """The tensor that begins at byte ``start``, rows behind each other."""
        if dtype not in self.typed:
            self.typed[dtype] = self.bytes.view(dtype)
        strides = [1] * len(dims)
        for i in range(len(dims) - 2, -1, -1):
            strides[i] = strides[i + 1] * dims[i + 1]
        return self.typed[dtype].as_strided(dims, strides, start // dtype.itemsize)

    def operand(self, start: int, t: Type, sizes: Mapping[str, int]) -> Operand:
        """A value of type ``t``; the scales of a quantized one lie behind its entries."""
        dims = shape(t.dims, sizes)
        if isinstance(t.elem, Elem):
            return self.tensor(start, dims, t.elem.torch)
        assert isinstance(t.elem, Quant)
        scales = shape(t.elem.scale_dims(t.dims), sizes)
        behind = start + aligned(nbytes(t.dims, t.elem.base, sizes))
        values = self.tensor(start, dims, t.elem.base.torch)
        return Quantized(values, self.tensor(behind, scales, t.elem.scale.torch), None, t.elem)


def shape(dims: Sequence[Dim], sizes: Mapping[str, int]) -> list[int]:
    """Dims as numbers."""
    return [evaluate(d, sizes) for d in dims]


def nbytes(dims: Sequence[Dim], elem: Elem, sizes: Mapping[str, int]) -> int:
    """Bytes of entries as torch stores them."""
    n = elem.torch.itemsize
    for d in shape(dims, sizes):
        n *= d
    return n


def room(t: Type, sizes: Mapping[str, int]) -> int:
    """Bytes that a value takes up."""
    if isinstance(t.elem, Elem):
        return nbytes(t.dims, t.elem, sizes)
    assert isinstance(t.elem, Quant)
    entries = aligned(nbytes(t.dims, t.elem.base, sizes))
    return entries + nbytes(t.elem.scale_dims(t.dims), t.elem.scale, sizes)
