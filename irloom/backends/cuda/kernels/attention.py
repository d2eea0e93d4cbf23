"""Attention over paged caches: of steps that decode, and of steps where some sequences bring more tokens.

In the latter two kernels run, one for sequences that bring one token and one for the others: which is whose
is read on the device, so that one graph serves every mixture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache as remembered
from typing import Any

import torch
from torch import Tensor

from irloom.ir.seqs import PagedCache

from ..step import Step
from ..work import Workspace
from .decode_attention import decode
from .mode import options
from .prefill_attention import prefill


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut: blocks of ``keys``, blocks of ``rows`` (queries), and how it is compiled.

    ``resident`` programs are meant to run on one multiprocessor at a time.
    """

    keys: int
    rows: int
    warps: int
    stages: int
    resident: int = 1


@dataclass(frozen=True)
class Heads:
    """Which query heads are rows of one product: ``size`` at a time of the ``group`` that share a KV head."""

    kv: int
    group: int
    size: int

    @property
    def blocks(self) -> int:
        """Into how many blocks the query heads of a KV head fall."""
        return -(-self.group // self.size)


def paged_attention(
    out: Tensor,
    q: Tensor,
    cache: PagedCache,
    step: Step,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
    values: int | None = None,
    work: Workspace,
) -> None:
    """``out`` [t, h, e] of ``q`` [t, h, d], as the op says; rows that belong to nobody are left as they are.

    Of each tensor the last dim is contiguous. ``sinks`` [h] or [t, h], ``slopes`` [h].
    """
    call = Call(out, q, cache, step, sinks, slopes, scale, window, softcap, chunk, values)
    if not step.decode:
        run_prefill(call, prefill_tiles(call)[0])
    run_decode(call, decode_tiles(call)[0], work)


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

    def heads(self, rows: int) -> Heads:
        """Query heads in blocks of at most ``rows``."""
        kv = self.cache.k.shape[2]
        group = self.q.shape[1] // kv
        return Heads(kv, group, min(group, rows))

    def tensors(self) -> tuple[Tensor, ...]:
        """Of a kernel's operands, those from the queries on."""
        step, k = self.step, self.cache.k
        v = k if self.values is not None else self.cache.v
        table = step.tables[self.cache.pool]
        absent = step.context  # read by nobody
        return (
            self.q, k, v, table, step.starts, step.context,
            absent if self.sinks is None else self.sinks, absent if self.slopes is None else self.slopes,
        )  # fmt: skip

    def sizes(self) -> tuple[int, ...]:
        """What follows them: sequences, and the strides that a launch may change."""
        table = self.step.tables[self.cache.pool]
        sink = 0 if self.sinks is None or self.sinks.dim() == 1 else self.sinks.stride(0)
        return (
            self.step.seqs, self.q.stride(0), self.q.stride(1), self.out.stride(0), self.out.stride(1),
            table.stride(0), sink,
        )  # fmt: skip

    def constants(self, tile: Tile) -> dict[str, Any]:
        """What a kernel is compiled for."""
        k = self.cache.k
        v = k if self.values is not None else self.cache.v
        heads, dim, value = self.heads(tile.rows), k.shape[3], self.out.shape[2]
        main = max(16, _power_below(dim))
        return {
            "GROUP": heads.group, "HEADS": heads.size, "BLOCKS": heads.blocks, "ROWS": tile.rows,
            "K_PAGE": k.stride(0), "K_TOKEN": k.stride(1), "K_HEAD": k.stride(2),
            "V_PAGE": v.stride(0), "V_TOKEN": v.stride(1), "V_HEAD": v.stride(2),
            "DIM": dim, "MAIN": main, "REST": max(16, power_above(dim - main)) if dim > main else 0,
            "VALUE": value, "VALUES": max(16, power_above(value)),
            "SHARED": self.values == main,
            "PAGE": k.shape[1], "SCALE": self.scale, "SOFTCAP": self.softcap or 0.0,
            "SLOPED": self.slopes is not None, "SUNK": self.sinks is not None,
            "WINDOW": self.window or 0, "CHUNK": self.chunk or 0, "BLOCK": tile.keys,
        }  # fmt: skip


def run_decode(call: Call, tile: Tile, work: Workspace) -> None:
    """Attention of the sequences that bring one token."""
    step, heads, values = call.step, call.heads(tile.rows), max(16, power_above(call.out.shape[2]))
    longest = step.tables[call.cache.pool].shape[1] * call.cache.page
    most = step.seqs * -(-longest // tile.keys)
    blocks = heads.kv * heads.blocks
    programs = max(1, min(multiprocessors(call.q.device) * tile.resident // blocks, most))
    sums = work.take((blocks, 2 * programs, tile.rows, values), torch.float32)
    tops, totals = (work.take((blocks, 2 * programs, tile.rows), torch.float32) for _ in range(2))
    decode[blocks, programs](
        call.out, sums, tops, totals, work.counters, *call.tensors(), *call.sizes(),
        **call.constants(tile), MIXED=not step.decode, SCAN=32 if step.seqs <= 32 else 1024,
        **options(num_warps=tile.warps, num_stages=tile.stages),
    )  # fmt: skip


def run_prefill(call: Call, tile: Tile) -> None:
    """Attention of the sequences that bring more than one token."""
    heads = call.heads(tile.rows)
    blocks = call.step.tokens // (tile.rows // heads.size) + call.step.seqs
    prefill[heads.kv * heads.blocks, blocks](
        call.out, *call.tensors(), *call.sizes(), **call.constants(tile),
        **options(num_warps=tile.warps, num_stages=tile.stages),
    )  # fmt: skip


def decode_tiles(call: Call) -> tuple[Tile, ...]:
    """Candidates for ``run_decode``, the one to take without measuring first."""
    rows = min(64, max(16, power_above(call.heads(64).group)))
    return (Tile(64, rows, 4, 3, 2),)


def prefill_tiles(call: Call) -> tuple[Tile, ...]:
    """Candidates for ``run_prefill``, the one to take without measuring first."""
    return (Tile(64, 128, 8, 3),)


def power_above(n: int) -> int:
    """The least power of two that is not below ``n``."""
    return 1 << max(0, n - 1).bit_length()


def _power_below(n: int) -> int:
    return 1 << (n.bit_length() - 1)


@remembered
def multiprocessors(device: torch.device) -> int:
    """How many the device has; in the interpreter as few as let parts of sequences meet."""
    if device.type != "cuda":
        return 6
    return torch.cuda.get_device_properties(device).multi_processor_count
