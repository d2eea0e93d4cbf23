"""One call of attention, as its kernels take it: tensors, strides, and what they are compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from irloom.ir.seqs import PagedCache

from ..step import Step
from .tiles import power_of_two


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut: blocks of ``keys``, blocks of ``rows`` (queries), and how it is compiled.

    ``resident`` programs are meant to run on one multiprocessor at a time. With ``groups`` some of a
    program's warps have keys and values copied, and others multiply.
    """

    keys: int
    rows: int
    warps: int
    stages: int
    resident: int = 1
    groups: bool = False


@dataclass(frozen=True)
class Heads:
    """Which query heads are rows of one product: ``size`` at a time of the ``group`` that share a KV head."""

    kv: int
    group: int
    size: int

    @property
    def parts(self) -> int:
        """Into how many blocks the query heads of a KV head fall."""
        return -(-self.group // self.size)

    @property
    def blocks(self) -> int:
        """Blocks of query heads in all."""
        return self.kv * self.parts


@dataclass(frozen=True)
class Call:
    """The arguments of ``paged_attention``."""

    out: Tensor
    q: Tensor
    cache: PagedCache
    step: Step
    sinks: Tensor | None
    slopes: Tensor | None
    scale: float
    window: int | None
    softcap: float | None
    chunk: int | None
    values: int | None

    @property
    def table(self) -> Tensor:
        """Pages of each sequence."""
        return self.step.tables[self.cache.pool]

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.q.shape[1] // self.cache.k.shape[2]

    @property
    def value(self) -> int:
        """Features of a value, up to a power of two: as many entries has a row of sums."""
        return max(16, power_of_two(self.out.shape[2]))

    def heads(self, rows: int) -> Heads:
        """Query heads in blocks of at most ``rows``."""
        return Heads(self.cache.k.shape[2], self.group, min(self.group, rows))

    def kept(self) -> tuple[Tensor, Tensor, int]:
        """Keys and values as kernels read them; exponent bits of fp8 that is read in pairs, else 0."""
        k, v = self.cache.k, self.cache.k if self.values is not None else self.cache.v
        bits = {torch.float8_e4m3fn: 4, torch.float8_e5m2: 5}.get(k.dtype, 0)
        powers = all(t.shape[3] >= 32 and t.shape[3] == power_of_two(t.shape[3]) for t in (k, v))
        even = not any(n % 2 for t in (k, v) for n in (*t.stride()[:3], t.storage_offset()))
        if not bits or not powers or not even or self.values is not None or self.q.element_size() != 2:
            return k, v, 0
        return k.view(torch.uint16), v.view(torch.uint16), bits

    def tensors(self) -> tuple[Tensor, ...]:
        """Of a kernel's operands, those from the queries on."""
        step, (k, v, _) = self.step, self.kept()
        absent = step.context  # read by nobody
        return (
            self.q, k, v, self.table, step.starts, step.context,
            absent if self.sinks is None else self.sinks, absent if self.slopes is None else self.slopes,
        )  # fmt: skip

    def sizes(self) -> tuple[int, ...]:
        """What follows them: sequences, and the strides that a launch may change."""
        sink = 0 if self.sinks is None or self.sinks.dim() == 1 else self.sinks.stride(0)
        return (
            self.step.seqs, self.q.stride(0), self.q.stride(1), self.out.stride(0), self.out.stride(1),
            self.table.stride(0), sink,
        )  # fmt: skip

    def constants(self, tile: Tile) -> dict[str, Any]:
        """What a kernel is compiled for."""
        k, v, pairs = self.kept()
        heads, dim = self.heads(tile.rows), self.q.shape[2]
        main = max(16, 1 << (dim.bit_length() - 1))
        return {
            "GROUP": heads.group, "HEADS": heads.size, "BLOCKS": heads.parts, "ROWS": tile.rows,
            "K_PAGE": k.stride(0), "K_TOKEN": k.stride(1), "K_HEAD": k.stride(2),
            "V_PAGE": v.stride(0), "V_TOKEN": v.stride(1), "V_HEAD": v.stride(2),
            "DIM": dim, "MAIN": main, "REST": max(16, power_of_two(dim - main)) if dim > main else 0,
            "VALUE": self.out.shape[2], "VALUES": self.value, "SHARED": self.values == main,
            "PAGE": k.shape[1], "SCALE": self.scale, "SOFTCAP": self.softcap or 0.0,
            "SLOPED": self.slopes is not None, "SUNK": self.sinks is not None,
            "WINDOW": self.window or 0, "CHUNK": self.chunk or 0, "PAIRS": pairs, "BLOCK": tile.keys,
        }  # fmt: skip


@dataclass(frozen=True)
class Fresh:
    """Keys and values of a step that the cache has yet to hold, and queries that are to be rotated.

    As the operands and attributes of ``rope_append`` say, ``half`` pairs of features by ``freq``.
    """

    k: Tensor
    v: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    freq: Tensor
    eps: float | None
    half: int
    interleaved: bool
    scale: float

    def operands(self, cache: PagedCache) -> tuple[Any, ...]:
        """The last operands of ``few``."""
        strides = self.k.stride(0), self.k.stride(1), self.v.stride(0), self.v.stride(1)
        norms = self.q_norm, self.k_norm
        return (self.k, self.v, cache.k, cache.v, *norms, self.freq, *strides, self.eps or 0.0)

    def constants(self) -> dict[str, Any]:
        """What it is compiled for."""
        return {
            "HALF": self.half, "INTERLEAVED": self.interleaved, "TURN": self.scale,
            "NORM": self.eps is not None,
        }  # fmt: skip
