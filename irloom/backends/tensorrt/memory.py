"""Where the values between the parts of a program lie: blocks that are allocated once and used again.

A block holds one value at a time. It is free for another once the last part that reads the value has run.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from irloom.ir.dims import Dim, product

from .network import Tensor, size_of
from .program import Program


def assign(program: Program) -> tuple[dict[str, int], list[int]]:
    """The number of the block of each value that a part makes, and the bytes of each block.

    The logits have none: they have memory of their own.
    """
    most = {name: high for name, (_, high) in program.dims.items()}
    values = {name: t for name, t in program.values.items() if name != program.logits}
    last = {name: i for i, part in enumerate(program.parts) for name in (*part.makes, *part.reads)}
    block: dict[str, int] = {}
    sizes: list[int] = []
    free: list[int] = []
    for i, part in enumerate(program.parts):
        for name in (name for name in part.makes if name in values):
            block[name] = _take(free, sizes, nbytes(values[name], most))
        ended = (name for name in dict.fromkeys((*part.reads, *part.makes)) if last[name] == i)
        free += [block[name] for name in ended if name in block]
    return block, sizes


def _take(free: list[int], sizes: list[int], size: int) -> int:
    """The free block that is nearest in size, made larger where it must be; a new one where none is free."""
    if not free:
        sizes.append(size)
        return len(sizes) - 1
    fitting = [b for b in free if sizes[b] >= size]
    found = min(fitting, key=lambda b: sizes[b]) if fitting else max(free, key=lambda b: sizes[b])
    free.remove(found)
    sizes[found] = max(sizes[found], size)
    return found


def nbytes(t: Tensor, sizes: Mapping[str, int]) -> int:
    """Bytes of a value as torch stores it."""
    return size_of(product(t.dims), sizes) * t.elem.torch.itemsize


class Memory:
    """The blocks of a program on a device, for its largest step."""

    def __init__(self, program: Program, device: torch.device) -> None:
        self.values = program.values
        self.block, sizes = assign(program)
        self.blocks = [torch.zeros(n, dtype=torch.uint8, device=device) for n in sizes]

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(b.numel() for b in self.blocks)

    def view(self, name: str, sizes: Mapping[str, int]) -> torch.Tensor:
        """The memory of a value in a step of these sizes."""
        t = self.values[name]
        return view(self.blocks[self.block[name]], t, sizes)


def view(block: torch.Tensor, t: Tensor, sizes: Mapping[str, int]) -> torch.Tensor:
    """The beginning of a block as a tensor of the element and dims of ``t``."""
    return block[: nbytes(t, sizes)].view(t.elem.torch).view(shape(t.dims, sizes))


def shape(dims: tuple[Dim, ...], sizes: Mapping[str, int]) -> list[int]:
    """Dims as numbers."""
    return [size_of(d, sizes) for d in dims]
