"""Rows as the right operands of products by four-bit weights: integers of two digits, in fragments.

A row's entries of a block become integers of 15 bits, a power of two of which is one, and these two digits of
eight bits. A bf16 has eight: entries that are not tiny beside the block's largest stay what they are. So the
weight's entries are never converted, and the sums of a span are exact.
"""

# ruff: noqa: RUF005 (Triton joins tuples, but does not unpack them)
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

from typing import NamedTuple

import torch

from ..fragments import blocks_of
from ..work import Workspace
from .mode import go_on, kernel, options, rounded, tl, triton, wait
from .tiles import power_of_two

HIDDEN = tl.constexpr(12582912.0)
"""1.5 times the power of two whose floats are 1 apart: what is added to it lies in the lower bits."""
ROWS = tl.constexpr(8)
"""As many rows have room beside a block."""


class Digits(NamedTuple):
    """Rows in fragments of eight columns, the upper and lower digits of four rows: ``values`` i8[blocks, 4
    spans, sets of four rows, 8 span]. ``beside`` f32[blocks, 6, ROWS]: what one is worth in a block of a
    row, its sum of squares, and the sums of its four spans, in sixteenths of one.
    """

    values: torch.Tensor
    beside: torch.Tensor


def row_digits(
    x: torch.Tensor, norm: torch.Tensor | None, *, normed: bool, totals: bool, span: int, work: Workspace
) -> Digits:
    """Of rows [T, K], times ``norm`` [K]. Squares are summed where rows are ``normed``, spans where their
    ``totals`` are asked for.
    """
    (t, k), sets = x.shape, sets_of(x.shape[0])
    blocks = blocks_of(k, span)
    made = Digits(
        work.take((blocks, 4, sets, 8 * span), torch.int8), work.take((blocks, 6, ROWS.value), torch.float32)
    )
    row_digits_kernel[blocks, t](
        *made, x, norm, x.stride(0), K=k, SPAN=span, SETS=sets, NORM=normed, TOTALS=totals,
        **options(num_warps=1),
    )  # fmt: skip
    return made


def sets_of(rows: int) -> int:
    """Sets of four rows, a power of two."""
    return max(1, power_of_two(rows) // 4)


@kernel
def row_digits_kernel(
    values, beside, x, norm, x_row, K: tl.constexpr, SPAN: tl.constexpr, SETS: tl.constexpr,
    NORM: tl.constexpr, TOTALS: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """A program makes a block of a row. A thread has entries that lie side by side in a fragment."""
    go_on(CHAIN)
    b, t, i = tl.program_id(0), tl.program_id(1), tl.arange(0, SPAN)
    k = b * (4 * SPAN) + i // 16 * 16 + i // 2 % 2 * 8 + i // 4 % 4 * 2 + i % 2
    norms, rows, most, squares = (), (), 0, 0.0
    for j in tl.static_range(4):
        norms = norms + (1.0 if norm is None else tl.load(norm + k + j * SPAN, k + j * SPAN < K, 0.0),)
    wait(CHAIN)
    for j in tl.static_range(4):
        h = tl.load(x + t * x_row + k + j * SPAN, k + j * SPAN < K, 0.0).to(tl.float32)
        if NORM:
            squares += h * h
            h *= norms[j]  # before the row is divided by its size: more than an f16 may hold
            if x.dtype.element_ty == tl.bfloat16:
                h = rounded(h, tl.bfloat16).to(tl.float32)
        rows, most = rows + (h,), tl.maximum(most, h.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    top = tl.max(most, 0)
    unit = tl.maximum(top & 0x7F800000, 32 << 23)
    by = ((140 << 23) - (unit - (127 << 23))).to(tl.float32, bitcast=True)
    one = tl.where(top < 0x7F800000, (unit - (17 << 23)).to(tl.float32, bitcast=True), float("nan"))
    beside += b * (6 * ROWS) + t
    tl.store(beside, one)
    if NORM:
        tl.store(beside + ROWS, tl.sum(squares, 0))
    at = place(t % 4 * 8 + i // 4 % 4, i // 16 * 4 + i % 4, SPAN)
    at += values + (b * 4 * SETS + t // 4) * (8 * SPAN)
    for j in tl.static_range(4):
        bits = (rows[j] * by + HIDDEN).to(tl.int32, bitcast=True)
        tl.store(at + j * (8 * SPAN * SETS), ((bits + 128) >> 8).to(tl.int8))
        tl.store(at + j * (8 * SPAN * SETS) + place(4, 0, SPAN), bits.to(tl.int8))
        if TOTALS:
            tl.store(beside + (2 + j) * ROWS, tl.sum(rows[j] * (16.0 * by), 0))


@kernel
def place(lane, i, SPAN: tl.constexpr):
    """Where the ``i``-th byte of a thread of a warp lies in a fragment: it reads 16 at a time, or 8."""
    PIECE: tl.constexpr = min(16, SPAN // 4)
    return i // PIECE * (32 * PIECE) + lane * PIECE + i % PIECE


@kernel
def factors(beside, eps, K: tl.constexpr, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr):
    """What a norm multiplies rows by [COLUMNS], all of whose entries have the mean square of 1 then."""
    b, t = tl.arange(0, triton.next_power_of_2(BLOCKS)), tl.arange(0, COLUMNS)
    squares = tl.load(beside + ROWS + b[:, None] * (6 * ROWS) + t[None, :], (b < BLOCKS)[:, None], 0.0)
    return tl.rsqrt(tl.sum(squares, 0) / K + eps)


@kernel
def digits_at(
    values, beside, T, b, TOTALS: tl.constexpr, BLOCKS: tl.constexpr, SPAN: tl.constexpr, SETS: tl.constexpr
):
    """Digits [slices, SPAN, 8 SETS] and totals [slices, 4 SETS] of each span of blocks ``b`` [slices]; what
    one is worth [slices, 4 SETS]. Digits of rows beyond the last are 0, and whatever else of them is any.
    """
    PIECES: tl.constexpr = 8 * SPAN // 512 if SPAN > 64 else 1
    EACH: tl.constexpr = 8 * SPAN // PIECES
    SLICES: tl.constexpr = b.shape[0]
    piece, i, t, hs = tl.arange(0, SETS * PIECES), tl.arange(0, EACH), tl.arange(0, 4 * SETS), ()
    rows = (piece // PIECES * 4)[:, None] + (i // (EACH // 4))[None, :]
    there = (rows < T)[None, :, :] & (b < BLOCKS)[:, None, None]
    place = (piece * EACH)[:, None] + i[None, :]
    near = beside + b[:, None] * (6 * ROWS) + t[None, :]
    for j in tl.static_range(4):
        h = tl.load(values + ((b * 4 + j) * (8 * SPAN * SETS))[:, None, None] + place[None, :, :], there, 0)
        # set, piece, column, quarter of 16 entries, 16 entries, entry
        h = tl.reshape(h, (SLICES, SETS, PIECES, 8, 4, EACH // 128, 4))
        h = tl.reshape(tl.permute(h, (0, 2, 5, 4, 6, 1, 3)), (SLICES, SPAN, 8 * SETS))
        total = tl.load(near + (2 + j) * ROWS, (b < BLOCKS)[:, None], 0.0) if TOTALS else 0.0
        hs = hs + ((h, total),)
    return hs, tl.load(near, (b < BLOCKS)[:, None], 0.0)
