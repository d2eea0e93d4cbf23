"""Quantized matrices as plain ones, so many rows at a time: for products whose multiplications cost most."""

from __future__ import annotations

import torch

from ..quantized import Quantized
from .mode import go_on, kernel, options, rounded, tl, triton, wait
from .tiled import SIGNED, four_bits, scale_rows, scale_strides

BLOCK = 1024


def expand(out: torch.Tensor, x: Quantized, first: int = 0) -> None:
    """``out`` [r, K] = ``(base - zero) * scale`` of the rows of ``x`` [N, K] from ``first`` on."""
    rows, k = out.shape
    expand_kernel[rows, triton.cdiv(k, BLOCK)](
        out, x.values, x.scales, x.zeros, first, k, out.stride(0), x.values.stride(0), *scale_strides(x),
        scale_rows(x), k // x.scales.shape[1], FOUR=four_bits(x), BK=BLOCK, **options(num_warps=4),
    )  # fmt: skip


@kernel
def expand_kernel(
    out, x, scales, zeros, first, K, out_row, x_row, scale_row, scale_group, rows, group,
    FOUR: tl.constexpr, BK: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """A program makes ``BK`` entries of a row: of a weight, or of what the kernel in front has rounded."""
    to, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * BK + tl.arange(0, BK)
    row, there = to + first, k < K
    go_on(CHAIN)
    wait(CHAIN)
    if FOUR:
        half = tl.program_id(1) * (BK // 2) + tl.arange(0, BK // 2)
        pairs = tl.load(x + row * x_row + half, half * 2 < K, 0)
        value = tl.join(pairs & 15, pairs >> 4).reshape(BK).to(tl.int32)
        if FOUR == SIGNED:
            value = (value ^ 8) - 8
        value = value.to(tl.float32)
    else:
        value = tl.load(x + row * x_row + k, there, 0.0).to(tl.float32)
    at = (row // rows) * scale_row + (k // group) * scale_group
    if zeros is not None:
        value -= tl.load(zeros + at, there, 0).to(tl.float32)
    value *= tl.load(scales + at, there, 0).to(tl.float32)
    tl.store(out + to * out_row + k, rounded(value, out.dtype.element_ty), there)
