"""Matrices as Hopper's copy engine (TMA) moves them: a box of rows and columns at a time."""

# pyright: reportGeneralTypeIssues=false
# (Triton's loops that are unrolled are no iterators)

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .mode import CHAINED, INTERPRETED, kernel, tl

if TYPE_CHECKING:
    from triton.tools.tensor_descriptor import TensorDescriptor


def has_boxes(*matrices: torch.Tensor | None) -> bool:
    """Whether the engine is there, and can move these: their rows begin at multiples of 16 bytes.

    >>> has_boxes(torch.zeros(4, 8), None), has_boxes(torch.zeros(4, 7))
    (True, False)
    """
    given = [m for m in matrices if m is not None]
    whole = all(m.stride(0) * m.itemsize % 16 == m.data_ptr() % 16 == 0 and m.stride(1) == 1 for m in given)
    return whole and (CHAINED or bool(INTERPRETED))


def box(matrix: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Boxes of a matrix; what lies beyond it is zeros to a load, and not stored."""
    return _boxes(matrix, [*matrix.shape], [*matrix.stride()], [rows, columns])


def weight_box(weight: torch.Tensor, rows: int, columns: int, gated: bool) -> TensorDescriptor:
    """Boxes of a weight [N, K]; of one [2 N, K] where ``gated``, boxes of two halves [2, rows, columns]."""
    if not gated:
        return box(weight, rows, columns)
    n, k = weight.shape[0] // 2, weight.shape[1]
    row = weight.stride(0)
    return _boxes(weight, [2, n, k], [n * row, row, 1], [2, rows, columns])


def stack_box(stack: torch.Tensor, halves: int, rows: int, columns: int) -> TensorDescriptor:
    """Boxes of matrices [E, N, K], one behind the other: ``rows`` of each of so many ``halves`` (1 or 2)
    [halves, rows, columns], from [E * halves, N / halves, K].
    """
    experts, n, k = stack.shape
    parts = stack.view(experts * halves, n // halves, k)
    return _boxes(parts, [*parts.shape], [*parts.stride()], [halves, rows, columns])


def _boxes(memory: torch.Tensor, dims: list[int], strides: list[int], of: list[int]) -> TensorDescriptor:
    from triton.tools.tensor_descriptor import TensorDescriptor  # not before mode has said how kernels run

    return TensorDescriptor(memory, dims, strides, of)


@kernel
def prefetch_rows(
    weight, n0, N, K, row_size, first, BN: tl.constexpr, GATED: tl.constexpr, KIB: tl.constexpr
):
    """Brings ``KIB`` KiB of ``BN`` rows of a weight from ``n0`` on, of both halves where ``GATED``, from
    entry ``first`` on, to the L2 cache, and waits for nothing. Rows that have less left are left alone.
    """
    size: tl.constexpr = weight.dtype.element_ty.primitive_bitwidth // 8
    if not INTERPRETED and first + KIB * 1024 // size <= K:
        row = tl.arange(0, BN * (2 if GATED else 1))
        row = (row // BN) * N + tl.minimum(n0 + row % BN, N - 1)
        at = (weight + row.to(tl.int64) * row_size + first).to(tl.int64, bitcast=True)
        for kib in tl.static_range(KIB):
            tl.inline_asm_elementwise(
                "cp.async.bulk.prefetch.L2.global [$1], 1024; mov.b32 $0, 0;", "=r,l", [at + kib * 1024],
                tl.int32, False, 1,
            )  # fmt: skip
