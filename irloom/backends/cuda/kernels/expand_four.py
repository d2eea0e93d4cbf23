"""Four-bit matrices in fragments as plain ones, so many rows at a time."""

# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import torch

from ..fragments import STRIP, blocks_of
from ..quantized import Quantized
from .few_four import kinds, words
from .mode import go_on, kernel, options, rounded, tl, triton, wait
from .nibbles import cut, matrix, one_of

STRIPS = 4


def expand_four(out: torch.Tensor, x: Quantized, first: int = 0) -> None:
    """``out`` [r, K] = ``(base - zero) * scale`` of rows of ``x`` [N, K] from ``first`` on: whole strips."""
    (rows, k), span = out.shape, x.values.shape[2] * 16
    assert rows % STRIP == 0 and first % STRIP == 0
    strips, blocks = rows // STRIP, blocks_of(k, span)
    expand_four_kernel[triton.cdiv(strips, STRIPS), blocks](
        out, *words(x), first // STRIP, strips, blocks, k, out.stride(0), **kinds(x), SPAN=span,
        STRIPS=STRIPS, **options(num_warps=4),
    )  # fmt: skip


@kernel
def expand_four_kernel(
    out, pairs, scales, zeros, first, count, blocks, K, out_row, SIGNED: tl.constexpr, SCALE: tl.constexpr,
    ZERO: tl.constexpr, SPAN: tl.constexpr, STRIPS: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """A program makes a block of some strips. Nothing that it reads is written by a kernel."""
    b, to = tl.program_id(1), tl.program_id(0) * STRIPS
    go_on(CHAIN)
    strip = tl.minimum(to + tl.arange(0, STRIPS), count - 1) + first
    at = pairs + ((strip * blocks + b).to(tl.int64) * (SPAN * 32))[:, None, None]
    at = at + (tl.arange(0, SPAN // 32) * 512)[None, :, None] + tl.arange(0, 512)[None, None, :]
    both = tl.load(at), tl.load(at + SPAN * 16)
    r = tl.arange(0, STRIPS * 16)
    row = tl.minimum(to * 16 + r, count * 16 - 1) + first * 16
    by = tl.load(scales + row * blocks + b)
    minus = tl.load(zeros + row * blocks + b) if zeros is not None else 0
    wait(CHAIN)
    for j in tl.static_range(4):
        y = matrix(cut(both[j // 2], j % 2, SIGNED, tl.bfloat16), STRIPS * 16, SPAN).to(tl.float32)
        if zeros is not None:
            y -= one_of(minus, j, ZERO)[:, None]
        y *= one_of(by, j, SCALE)[:, None]
        k = (b * (4 * SPAN) + j * SPAN + tl.arange(0, SPAN))[None, :]
        there = (to * 16 + r < count * 16)[:, None] & (k < K)
        rows = (to * 16 + r).to(tl.int64)[:, None]
        tl.store(out + rows * out_row + k, rounded(y, out.dtype.element_ty), there)
