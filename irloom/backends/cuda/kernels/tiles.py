"""What kernels on rows share: tensors as rows of heads, tiles, and how a tile is stored, quantized or not."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from irloom.backends.cuda.alike import alike
from irloom.backends.cuda.quantized import Operand, Quantized
from irloom.ir.errors import IRError

from .mode import kernel, rounded, tl, whole


@dataclass(frozen=True)
class Tile:
    """What one program works on: so many ``rows``, by so many ``warps``."""

    rows: int
    warps: int


FEW = 1 << 20
"""Up to so many entries a kernel's time is the way there and back: it is tuned for few and for many."""


def amount(entries: int) -> str:
    """What a choice of tiles depends on of the number of rows, so that buckets share one."""
    return "few" if entries <= FEW and not alike() else "many"


def power_of_two(n: int) -> int:
    """The smallest that is at least ``n``: sizes of tiles are such."""
    return 1 << (n - 1).bit_length()


def heads(x: torch.Tensor) -> torch.Tensor:
    """``x`` as [rows, heads, features], with one head where it has two dims or fewer.

    A view, whatever lies between rows; the features of a head lie side by side.
    """
    if x.dim() > 3:
        x = x.view(-1, *x.shape[-2:])
    while x.dim() < 3:
        x = x.unsqueeze(-2 if x.dim() == 2 else 0)
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise IRError(f"cuda: a kernel on rows is given {[*x.shape]} with strides {[*x.stride()]}")
    return x


def fresh(t: torch.Tensor | None) -> torch.Tensor | None:
    """A tensor like this one to time kernels on: what they write may be what they read."""
    return None if t is None else torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)


def strides(t: torch.Tensor | None) -> tuple[int, int]:
    """From row to row, from head to head."""
    return (0, 0) if t is None else (t.stride(0), t.stride(1))


def row_stride(t: torch.Tensor | None) -> int:
    """From row to row, 0 where there is none."""
    return 0 if t is None else t.stride(0)


@dataclass(frozen=True)
class Target:
    """Where rows go: ``group`` entries of ``out`` share one of ``scales``, 0 where there are none.

    ``limit`` is the largest entry that a quantized row may have.
    """

    out: torch.Tensor
    scales: torch.Tensor | None = None
    group: int = 0
    limit: float = 0.0

    @staticmethod
    def of(out: Operand) -> Target:
        """Rows, or quantized rows: of e4m3 or i8, a scale for each row or for 128 of it."""
        if not isinstance(out, Quantized):
            return Target(heads(out))
        limits = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
        group = out.quant.group or out.values.shape[-1]
        whole = group == out.values.shape[-1] or (power_of_two(group) == group)
        if out.values.dtype not in limits or out.zeros is not None or not whole:
            raise IRError(f"cuda: no kernel rounds activations to {out.quant.declaration()}")
        scales = out.scales.view(-1, out.scales.shape[-1])
        return Target(heads(out.values), scales, group, limits[out.values.dtype])

    def fresh(self) -> Target:
        """Another place of the same form."""
        out = fresh(self.out)
        assert out is not None
        return Target(out, fresh(self.scales), self.group, self.limit)

    def width(self, block: int) -> int:
        """``GROUP`` of ``store_rows`` in tiles of ``block`` features."""
        return min(block, power_of_two(self.group)) if self.group else 0


@kernel
def store_rows(
    out, scales, step, h, row, start, live, GROUP: tl.constexpr, LIMIT: tl.constexpr, D: tl.constexpr
):
    """Store ``h`` f32[R, B], columns from ``start`` on of rows of ``D``, to pointers ``out`` where ``live``.

    With ``GROUP`` the largest of so many becomes ``LIMIT``; scales go to pointers ``scales`` [R] of the rows
    that ``row`` i1[R] says are there, ``step`` further for each next group. Entries of ``h`` that are not
    live are 0.
    """
    if GROUP > 0:
        R: tl.constexpr = h.shape[0]
        B: tl.constexpr = h.shape[1]
        parts = tl.reshape(h, (R, B // GROUP, GROUP))
        scale = tl.div_rn(tl.max(tl.abs(parts), 2), LIMIT)
        parts = parts * tl.where(scale == 0.0, 0.0, tl.div_rn(1.0, scale))[:, :, None]
        if LIMIT == 127.0:
            parts = whole(parts)
        h = tl.reshape(parts, (R, B))
        group = start // GROUP + tl.arange(0, B // GROUP)[None, :]
        tl.store(scales[:, None] + step * group, scale, row[:, None] & (group * GROUP < D))
    tl.store(out, rounded(h, out.dtype.element_ty), live)
