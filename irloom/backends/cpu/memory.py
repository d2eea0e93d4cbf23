"""What programs name beside kernels: buffers, views of them, weights, caches, rotary tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from irloom.backends.cpu.native import ELEMS as CACHE_ELEMS
from irloom.backends.cpu.native import Raw
from irloom.backends.cpu.step import Count, PoolArrays, Rows, Step, zeros
from irloom.ir.elem import ELEMS
from irloom.ir.ops.attention import default_frequencies
from irloom.ir.seqs import PagedCache, StateCache


class Cache:
    """One layer's pages: keys and values [pages, page, kv heads, head dim], and the pool they belong to.

    ``dim`` are the features of a key, ``values`` those of a value: 0 where there are keys only.
    """

    __slots__ = ("arrays", "dim", "elem", "heads", "k_ptr", "page", "v_ptr", "value", "values")

    def __init__(self, value: PagedCache, arrays: PoolArrays) -> None:
        self.value, self.values, self.arrays = value, value.v.shape[3], arrays
        self.k_ptr, self.v_ptr, self.elem = value.k.data_ptr(), value.v.data_ptr(), CACHE_ELEMS[value.k.dtype]
        self.page, (self.heads, self.dim) = value.page, value.k.shape[2:]


class States:
    """One layer's states [slots, ...] of sequences, and the pool that slots come from."""

    __slots__ = ("arrays", "every", "ptr", "value")

    def __init__(self, value: StateCache, arrays: PoolArrays) -> None:
        self.value, self.every, self.arrays = value, value.every, arrays
        self.ptr = value.states.data_ptr()


AnyCache = Cache | States


class Turns:
    """Cosines and sines [T, rotary / 2] of this step's positions, made before the first layer."""

    def __init__(self, raw: Raw, step: Step, inverse: torch.Tensor, scale: float) -> None:
        self.half, self.scale, self.inverse = len(inverse), scale, inverse
        size = step.tokens_now.most * self.half * 4
        self.cos, self.sin = (zeros(size, torch.float32) for _ in range(2))
        self.cos_ptr, self.sin_ptr = self.cos.data_ptr(), self.sin.data_ptr()
        self._raw, self._tokens = raw, step.tokens_now
        self._positions = step.positions.ctypes.data

    def update(self) -> None:
        """Positions to angles."""
        where, inverse = (self.cos_ptr, self.sin_ptr), self.inverse.data_ptr()
        self._raw.rope_table(self._positions, inverse, *where, self._tokens.now, self.half, self.scale)


class Memory:
    """Makes what a program's first lines and its parameters ask for; ``turns`` are rotary tables it made."""

    def __init__(self, raw: Raw, step: Step, weights: Mapping[str, Any]) -> None:
        self._raw, self._step, self._weights = raw, step, weights
        self.turns: list[Turns] = []

    def names(self) -> dict[str, Any]:
        """The names of the makers, and of the arrays of the step."""
        step, bound = self._step, self._weights.__getitem__
        return {
            "buffer": self._buffer,
            "rows": self._rows,
            "turns": self._turns,
            "packed": bound,
            "vector": bound,
            "tensor": bound,
            "T": step.tokens_now,
            "S": step.seqs_now,
            "tokens": torch.from_numpy(step.tokens),
            "positions": torch.from_numpy(step.positions),
        }

    def _buffer(self, elem: str, nbytes: Count | int) -> torch.Tensor:
        return zeros(nbytes if isinstance(nbytes, int) else nbytes.most, ELEMS[elem].torch)

    def _rows(
        self,
        base: torch.Tensor,
        dims: tuple[Count | int, ...],
        elem: str = "f32",
        *,
        offset: int = 0,
        stride: int | None = None,
    ) -> Rows:
        dtype = ELEMS[elem].torch
        return Rows(base if base.dtype == dtype else base.view(dtype), dims, offset, stride)

    def _turns(self, inverse: torch.Tensor | float, rotary: int, *, scale: float) -> Turns:
        if not isinstance(inverse, torch.Tensor):
            inverse = default_frequencies(inverse, rotary)
        self.turns.append(Turns(self._raw, self._step, inverse.float().contiguous(), scale))
        return self.turns[-1]
