"""Memory that a launch needs for itself: taken in a moment, free when the launch has been queued."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

ALIGN = 256
BLOCK = 1 << 20
COUNTERS = 1 << 14


class Workspace:
    """Scratch memory on a device. What launches take is theirs until ``reset``.

    It grows when a step asks for more than any before; blocks stay where they are, since graphs know their
    addresses. ``counters`` (i32 [COUNTERS]) are zeros: CTAs of a launch count in them who is last, or
    hand over words (``kernels.collect``), and leave zeros.

    >>> work = Workspace("cpu")
    >>> x = work.take((3, 4), torch.float32)
    >>> x.shape, work.nbytes
    (torch.Size([3, 4]), 1048576)
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.counters = torch.zeros(COUNTERS, dtype=torch.int32, device=self.device)
        self.blocks: list[torch.Tensor] = []
        self.block = self.at = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(b.numel() for b in self.blocks)

    def reset(self) -> None:
        """All of it is free again: what was queued runs before what will be."""
        self.block = self.at = 0

    @contextmanager
    def lent(self) -> Iterator[None]:
        """What is taken inside is free again behind it."""
        held = self.block, self.at
        try:
            yield
        finally:
            self.block, self.at = held

    def take(self, dims: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor whose entries are whatever was there."""
        size = math.prod(dims) * dtype.itemsize
        room = -(-size // ALIGN) * ALIGN
        while self.block < len(self.blocks) and self.at + room > self.blocks[self.block].numel():
            self.block, self.at = self.block + 1, 0
        if self.block == len(self.blocks):
            self.blocks.append(torch.empty(max(room, BLOCK), dtype=torch.uint8, device=self.device))
        start, self.at = self.at, self.at + room
        return self.blocks[self.block][start : start + size].view(dtype).view(*dims)

    def parts(self, tiles: int, split: int, entries: int) -> torch.Tensor | None:
        """Room in f32 where ``split`` programs a tile leave ``entries`` each; none where nothing is split."""
        if split == 1:
            return None
        assert tiles <= COUNTERS
        return self.take((tiles * split * entries,), torch.float32)
