"""The arrays of one step, at fixed addresses: what every kernel reads about tokens, sequences and pages."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

import numpy as np
import torch

from irloom.ir.plan import Pool
from irloom.ir.seqs import Seqs
from irloom.runtime.core import Batch

ALIGN = 64


class Count:
    """A symbolic dim of the program: how many there are in this step (``now``), and at most.

    Arithmetic on ``T`` and ``S``, such as ``4*T``, gives a count that follows theirs.
    """

    def __init__(self, name: str, most: int) -> None:
        self.name, self.most, self.now = name, most, most
        self._followers: list[Callable[[], None]] = []

    def set(self, now: int) -> None:
        """How many there are from now on."""
        self.now = now
        for follow in self._followers:
            follow()

    def __mul__(self, n: Count | int) -> Count:
        return self._derived(operator.mul, n)

    def __add__(self, n: Count | int) -> Count:
        return self._derived(operator.add, n)

    __rmul__, __radd__ = __mul__, __add__

    def _derived(self, op: Callable[[int, int], int], n: Count | int) -> Count:
        if isinstance(n, int):
            n = Count("", n)
        made = Count("", op(self.most, n.most))
        for count in (self, n):
            count._followers.append(lambda: made.set(op(self.now, n.now)))
        return made


class Rows:
    """A tensor in memory, as programs name it: address, entries between rows, how many rows there are now.

    ``by_rows`` is whether each row has a known width, which kernels need; else there are no gaps anywhere.
    """

    __slots__ = ("base", "by_rows", "count", "dims", "last", "offset", "ptr", "stride", "width")

    def __init__(
        self, base: torch.Tensor, dims: tuple[Count | int, ...], offset: int = 0, stride: int | None = None
    ) -> None:
        self.base, self.dims, self.offset = base, dims, offset
        self.ptr = base.data_ptr() + offset * base.element_size()
        first, inner = dims[0] if dims else 1, [d for d in dims[1:] if isinstance(d, int)]
        self.by_rows = len(inner) == len(dims[1:])
        self.count = first if isinstance(first, Count) else Count("", first)
        self.width = math.prod(inner)
        self.last = inner[-1] if inner else 1
        self.stride = self.width if stride is None else stride

    def tensor(self) -> torch.Tensor:
        """A view of the rows of this step."""
        sizes = [d if isinstance(d, int) else d.now for d in self.dims]
        strides = [1] * len(sizes)
        for i in range(len(sizes) - 2, -1, -1):
            strides[i] = strides[i + 1] * sizes[i + 1]
        if strides and self.by_rows:
            strides[0] = self.stride
        return self.base.as_strided(sizes, strides, self.base.storage_offset() + self.offset)


def zeros(nbytes: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeroed memory that the system hands out page by page as it is written: unused pages cost nothing."""
    room = -(-nbytes // ALIGN) * ALIGN + ALIGN
    raw = torch.from_numpy(np.zeros(room, dtype=np.uint8))
    start = -raw.data_ptr() % ALIGN
    return raw[start : start + room - ALIGN].view(dtype)


class PoolArrays:
    """One pool's part of a step: page table i32[S, pages], and each token's place i64[T] in the caches."""

    def __init__(self, pool: Pool, max_tokens: int, max_seqs: int, max_pages: int) -> None:
        self.pool, self.max_pages = pool, max_pages
        self.table = np.full((max_seqs, max_pages), -1, dtype=np.int32)
        self.slots = np.zeros(max_tokens, dtype=np.int64)
        self.table_ptr, self.slots_ptr = self.table.ctypes.data, self.slots.ctypes.data


class Step:
    """Arrays of the largest step; ``load`` fills in one batch."""

    def __init__(self, pools: Sequence[Pool], max_tokens: int, max_seqs: int, max_context: int) -> None:
        self.tokens_now, self.seqs_now = Count("T", max_tokens), Count("S", max_seqs)
        self.tokens = np.zeros(max_tokens, dtype=np.int32)
        self.positions = np.zeros(max_tokens, dtype=np.int32)
        self.starts = np.zeros(max_seqs + 1, dtype=np.int32)
        self.context = np.zeros(max_seqs, dtype=np.int32)
        self.last = np.zeros(max_seqs, dtype=np.int32)
        self.starts_ptr, self.context_ptr = self.starts.ctypes.data, self.context.ctypes.data
        self.last_ptr = self.last.ctypes.data
        self.pools = {p.name: PoolArrays(p, max_tokens, max_seqs, -(-max_context // p.page)) for p in pools}
        self.order = [p.name for p in pools]

    def load(self, batch: Batch) -> None:
        """Copy a batch in."""
        t, s = len(batch.tokens), len(batch.context)
        self.tokens_now.set(t)
        self.seqs_now.set(s)
        self.tokens[:t], self.positions[:t] = batch.tokens, batch.positions
        self.starts[: s + 1], self.context[:s] = batch.starts, batch.context
        np.subtract(self.starts[1 : s + 1], 1, out=self.last[:s])
        for name, table in zip(self.order, batch.tables, strict=True):
            arrays = self.pools[name]
            arrays.table[:s, : table.shape[1]] = table
            arrays.table[:s, table.shape[1] :] = -1

    def seqs(self) -> Seqs:
        """The same as the reference's ``Seqs``, for ops that run their bodies."""
        t, s = self.tokens_now.now, self.seqs_now.now
        tables = {name: torch.from_numpy(a.table[:s]) for name, a in self.pools.items()}
        starts, context = torch.from_numpy(self.starts[: s + 1]), torch.from_numpy(self.context[:s])
        return Seqs(torch.from_numpy(self.positions[:t]), starts, context, tables)
