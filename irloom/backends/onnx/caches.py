"""The caches of an engine: memory that ONNX Runtime reads and writes in place, as long as sequences are.

ONNX Runtime's attention goes through every key that it is given and masks afterwards, so what a step costs
follows the length of the tensors. Slots are therefore as long as the longest sequence needs for now, and some
more, and a step over one slot sees no more than its own keys, where those lie without gaps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irloom.runtime.core import Ints

DTYPES: dict[str, tuple[Any, int]] = {
    "tensor(float)": (np.float32, 1),
    "tensor(int32)": (np.int32, 6),
    "tensor(int64)": (np.int64, 7),
    "tensor(float16)": (np.float16, 10),
    "tensor(double)": (np.float64, 11),
    "tensor(bfloat16)": (np.uint16, 16),
}
"""By ONNX Runtime's name of a type: the NumPy type of its bytes, and ONNX's number for it."""
LEAST, STEP = 64, 64
"""Slots are at least this long, and multiples of this, in keys."""


@dataclass(frozen=True)
class CacheInput:
    """A cache as the model takes it: keys, values, or, with ``axis`` None, states of sequences.

    ``dims`` are those of one slot, with 0 for the keys, which are dim ``axis`` of the slot; of every
    ``stride`` tokens one is kept.
    """

    name: str
    kind: str
    dims: tuple[int, ...]
    axis: int | None
    stride: int = 1

    @property
    def dense(self) -> bool:
        """Whether the first keys of one slot lie without gaps."""
        return self.axis is not None and math.prod(self.dims[: self.axis]) == 1

    def sizes(self, length: int) -> tuple[int, ...]:
        """Dims of one slot of ``length`` tokens."""
        keys = -(-length // self.stride)
        return tuple(keys if i == self.axis else d for i, d in enumerate(self.dims))


@dataclass(frozen=True)
class Part:
    """``count`` slots from ``first`` on, ``length`` tokens of each, after memory has moved so many times."""

    first: int
    count: int
    length: int
    moves: int


@dataclass(frozen=True)
class View:
    """Some slots of a cache: where they begin in memory, their dims, ONNX's number of their type."""

    name: str
    address: int
    dims: tuple[int, ...]
    kind: int


class Caches:
    """All caches of ``slots`` slots; no slot gets longer than ``most`` tokens."""

    def __init__(self, inputs: Sequence[CacheInput], slots: int, most: int) -> None:
        self.inputs, self.slots, self.most = inputs, slots, most
        self.length = min(LEAST, most)
        self.moves = 0  # how often addresses changed
        self.arrays: dict[str, NDArray[Any]] = {c.name: self._empty(c, self.length) for c in inputs}

    def reach(self, length: int, used: Ints) -> None:
        """Make slots at least ``length`` tokens long; ``used`` [slots] is how many tokens each has.

        They get a quarter longer than they must be, and are shortened where they are twice too long.
        """
        need = max(length, int(used.max()))
        roomy = min(max(LEAST, _up(need + need // 4)), self.most)
        if need <= self.length and roomy * 2 > self.length:
            return
        old, self.length = self.arrays, roomy
        self.moves += 1
        self.arrays = {c.name: self._moved(c, old[c.name], used) for c in self.inputs}

    def forget(self, slot: int) -> None:
        """A sequence begins in ``slot``: its states are zeros."""
        for c in self.inputs:
            if c.axis is None:
                self.arrays[c.name][slot] = 0

    def part(self, first: int, count: int, length: int) -> Part:
        """The slots ``first`` to ``first + count - 1``; one alone, as far as ``length`` tokens reach."""
        return Part(first, count, min(_up(length), self.length) if count == 1 else self.length, self.moves)

    def views(self, part: Part) -> Iterator[View]:
        """That part of every cache; of one whose slots have gaps, all that there is of them."""
        for c in self.inputs:
            array = self.arrays[c.name]
            dims = c.sizes(part.length if c.dense else self.length)
            address = array.ctypes.data + part.first * array.strides[0]
            yield View(c.name, address, (part.count, *dims), DTYPES[c.kind][1])

    def _empty(self, c: CacheInput, length: int) -> NDArray[Any]:
        """Zeros that take memory page by page, as they are written."""
        return np.zeros((self.slots, *c.sizes(length)), DTYPES[c.kind][0])

    def _moved(self, c: CacheInput, old: NDArray[Any], used: Ints) -> NDArray[Any]:
        if c.axis is None:
            return old
        new = self._empty(c, self.length)
        for slot in np.flatnonzero(used):
            stored = min(-(-int(used[slot]) // c.stride), old.shape[1 + c.axis], new.shape[1 + c.axis])
            keys = (slot, *(slice(None),) * c.axis, slice(stored))
            new[keys] = old[keys]
        return new


def _up(length: int) -> int:
    return -(-length // STEP) * STEP
