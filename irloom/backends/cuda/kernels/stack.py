"""The matrices of experts [experts, n, k] as kernels read them, in whatever elements they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from irloom.backends.cuda.quantized import Operand, Quantized

from .curves import activated, clamped_silu_mul
from .form import Gate
from .mode import kernel, tl


@dataclass(frozen=True, eq=False)
class Stack:
    """``weight`` [experts, n, k] for a launch: plain, or quantized as a checkpoint has it (form ``rows``).

    >>> Stack(torch.empty(4, 6, 8)).dims
    (4, 6, 8)
    """

    weight: Operand

    @property
    def values(self) -> torch.Tensor:
        """Entries, four-bit ones two a byte."""
        return self.weight.values if isinstance(self.weight, Quantized) else self.weight

    @property
    def kind(self) -> str:
        """``plain``, ``bytes``, or four bits ``signed`` or ``unsigned``."""
        if not isinstance(self.weight, Quantized):
            return "plain"
        base = self.weight.quant.base
        return "bytes" if base.bits == 8 else "signed" if base.kind == "int" else "unsigned"

    @property
    def dims(self) -> tuple[int, int, int]:
        """Experts, rows of each, entries of a row."""
        experts, height, width = self.values.shape
        return experts, height, width * 2 if self.kind in ("signed", "unsigned") else width

    @property
    def group(self) -> int:
        """Entries of a row that share a scale; all of them where there is none."""
        quant = self.weight.quant if isinstance(self.weight, Quantized) else None
        return (quant.group if quant else 0) or self.dims[2]

    @property
    def nbytes(self) -> int:
        """Bytes of one expert's entries."""
        return self.values[0].numel() * self.values.element_size()

    def arguments(self) -> dict[str, Any]:
        """What kernels take of it, by their names. A scale stands for ``BLOCK`` rows of ``GROUP`` entries."""
        experts, height, width = self.dims
        q = self.weight if isinstance(self.weight, Quantized) else None
        return {
            "weight": self.values, "scales": q and q.scales, "zeros": None if q is None else q.zeros,
            "E": experts, "N": height, "K": width, "KIND": self.kind, "GROUP": self.group,
            "BLOCK": (q.quant.rows or height) if q else 1,
        }  # fmt: skip

    @property
    def chunk(self) -> int:
        """Entries of a row that a thread has at once: 16 bytes, or fewer where fewer share a scale."""
        entries = 32 if self.kind in ("signed", "unsigned") else 16 // self.values.element_size()
        return self.fitting(entries)

    def fitting(self, entries: int) -> int:
        """``entries``, a power of two, or fewer where fewer share a scale."""
        return min(entries, self.group & -self.group) if self.group < self.dims[2] else entries


def gate_arguments(gate: Gate | None) -> dict[str, Any]:
    """What kernels take of a gate, by their names."""
    given = gate or Gate()
    clamped = {"LIMIT": given.limit, "ALPHA": given.alpha, "SHIFT": given.shift}
    return {"ACT": gate and given.act, "WOVEN": given.woven, **clamped}


@kernel
def gated(gate, up, ACT: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, SHIFT: tl.constexpr):
    """What a ``Gate`` makes of f32."""
    if LIMIT is not None:
        return clamped_silu_mul(gate, up, LIMIT, ALPHA, SHIFT)
    else:
        return activated(gate, ACT) * up


@kernel
def expert_rows(tile, BN: tl.constexpr, N: tl.constexpr, APART: tl.constexpr):
    """The rows of a matrix that tile ``tile`` has: i32 [BN]. ``APART`` are gates and values that lie one
    behind the other: rows of both in turn.
    """
    i = tl.arange(0, BN)
    if APART:
        return tl.where(tile * (BN // 2) + i // 2 < N // 2, tile * (BN // 2) + i // 2 + i % 2 * (N // 2), N)
    else:
        return tile * BN + i


@kernel
def stored(
    weight, e, n, first, there,
    N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    USE: tl.constexpr,
):  # fmt: skip
    """Entries of expert ``e`` as they are stored: rows ``n``, ``BK`` of each from ``first`` on.

    Zeros where there are none, or not ``there``. Two four-bit entries are a byte: [BN, BK / 2]. Caches keep
    them by the policy ``USE``.
    """
    SHARED: tl.constexpr = 2 if KIND == "signed" or KIND == "unsigned" else 1  # pyright: ignore[reportAssignmentType]
    at = first // SHARED + tl.arange(0, BK // SHARED)
    good = there & (n < N)[:, None]
    if K % BK != 0:
        good = good & (at < K // SHARED)[None, :]
    base = weight + e.to(tl.int64) * (N * (K // SHARED))
    return tl.load(base + n[:, None] * (K // SHARED) + at[None, :], good, 0.0, eviction_policy=USE)  # pyright: ignore[reportArgumentType]


@kernel
def halves(w, KIND: tl.constexpr):
    """The first and the second entry of each byte, f32: an integer below 2**23 as a fraction of 2**23."""
    flip = 8 if KIND == "signed" else 0
    w = w.to(tl.int32)
    low = (((w & 15) ^ flip) | 0x4B000000).to(tl.float32, bitcast=True)
    high = (((w >> 4) ^ flip) | 0x4B000000).to(tl.float32, bitcast=True)
    return low - (8388608.0 + flip), high - (8388608.0 + flip)


@kernel
def of_group(
    scales, e, n, first,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scales or zeros f32 [n] of rows ``n`` of expert ``e`` in the group that entry ``first`` is in."""
    row = n // BLOCK
    base = scales + e.to(tl.int64) * ((N + BLOCK - 1) // BLOCK * (K // GROUP))
    return tl.load(base + row * (K // GROUP) + first // GROUP, n < N, 0).to(tl.float32)


@kernel
def of_chunks(
    scales, e, n, first, there,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Scales or zeros f32 [n, CHUNKS] of so many times ``WIDE`` entries from ``first`` on; [n, 1] where all
    are in one group.
    """
    if GROUP % (CHUNKS * WIDE) == 0:
        return of_group(scales, e, n, first, N, K, GROUP, BLOCK)[:, None]
    else:
        base = scales + e.to(tl.int64) * ((N + BLOCK - 1) // BLOCK * (K // GROUP))
        k = first + tl.arange(0, CHUNKS) * WIDE
        at = (n // BLOCK * (K // GROUP))[:, None] + (k // GROUP)[None, :]
        return tl.load(base + at, there & (n < N)[:, None] & (k < K)[None, :], 0).to(tl.float32)
