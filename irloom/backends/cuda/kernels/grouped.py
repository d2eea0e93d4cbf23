"""Experts of many tokens: one launch multiplies each block of rows of one expert with its matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .align import Blocks
from .form import Gate
from .mode import dot, go_on, kernel, options, rounded, tl, triton, wait
from .stack import Stack, expert_rows, gate_arguments, gated, halves, of_group, stored


@dataclass(frozen=True)
class Tile:
    """What a program computes: ``height`` rows of a block by ``rows`` of a matrix, ``entries`` at a time.

    With ``swap`` the matrix is the left operand: a tensor core instruction has at least 64 rows on its left,
    but may have 8 on its right. Blocks of at most ``rest`` rows are multiplied so, whatever others are.
    """

    height: int
    rows: int
    entries: int
    warps: int
    stages: int
    swap: bool = False
    rest: int = 0


SMALL = (
    Tile(16, 128, 64, 4, 4, swap=True), Tile(16, 128, 64, 4, 4), Tile(16, 64, 128, 4, 4, swap=True),
    Tile(16, 64, 128, 4, 4), Tile(16, 128, 128, 4, 3, swap=True), Tile(16, 64, 64, 4, 5, swap=True),
)  # fmt: skip
"""Where an expert has a few rows: what counts is how weights are read."""

MIDDLE = (
    Tile(32, 128, 64, 4, 4, swap=True), Tile(32, 64, 128, 4, 4, swap=True), Tile(64, 128, 64, 4, 4),
    Tile(64, 64, 128, 4, 4), Tile(64, 128, 64, 8, 4), Tile(64, 128, 64, 4, 4, swap=True),
)  # fmt: skip

LARGE = (
    Tile(128, 256, 64, 8, 4), Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 4, 3), Tile(64, 128, 64, 8, 4),
    Tile(128, 256, 64, 8, 3, swap=True),
)  # fmt: skip
"""Where tensor cores are what limits."""


def tiles(each: float, dtype: torch.dtype) -> tuple[Tile, ...]:
    """What to try for ``each`` rows of an expert on average, likely ones first."""
    if dtype == torch.float32:
        return (Tile(16 if each < 16 else 32, 64, 32, 4, 3),)  # no tensor core multiplies those
    if each <= 8:
        return SMALL
    return (*MIDDLE, *SMALL[:2]) if each <= 48 else (*LARGE, *MIDDLE[2:5])


def grouped_product(
    out: torch.Tensor,
    x: torch.Tensor,
    blocks: Blocks,
    stack: Stack,
    bias: torch.Tensor | None,
    gate: Gate | None,
    how: Tile,
) -> None:
    """``out`` [t, k, n]: the product of each choice in ``blocks`` with its expert, and ``bias`` [e, n].

    ``x`` is [t, h] or [t, k, h]. With a ``gate`` ``out`` is what it makes of the rows. Choices of no expert
    are 0 where ``blocks`` has them.
    """
    _, height, width = stack.dims
    k = out.shape[1]
    across, given = triton.cdiv(height, how.rows), stack.arguments()
    entries = how.entries * (1 if given["KIND"] == "plain" else 2)
    _grouped[(len(blocks) * across,)](
        out, x, blocks.rows, blocks.experts, bias, out.shape[0] * k, x.stride(0),
        x.stride(1) if x.ndim == 3 else 0, across, **given, TOP=k, **gate_arguments(gate),
        WHOLE=given["KIND"] == "bytes" and given["GROUP"] == width and given["zeros"] is None,
        BM=how.height, BN=how.rows, BK=stack.fitting(entries), SWAP=how.swap, REST=how.rest,
        **options(num_warps=how.warps, num_stages=how.stages),
    )  # fmt: skip


@kernel
def _grouped(
    out, x, rows, owner, bias, choices, row_stride, choice_stride, tiles, weight, scales, zeros,
    E: tl.constexpr, N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, TOP: tl.constexpr, ACT: tl.constexpr, WOVEN: tl.constexpr, LIMIT: tl.constexpr,
    ALPHA: tl.constexpr, SHIFT: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, SWAP: tl.constexpr, REST: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """A program per block and tile of rows of its expert; tiles of a block are neighbours."""
    block, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    wait(CHAIN)
    go_on(CHAIN)
    e = tl.load(owner + block)
    if e < 0:
        return
    rows += block * BM
    if REST > 0 and tl.load(rows + REST) >= choices:
        _multiply(
            out, x, rows, e, tile, bias, choices, row_stride, choice_stride, weight, scales, zeros,
            E, N, K, KIND, GROUP, BLOCK, TOP, ACT, WOVEN, LIMIT, ALPHA, SHIFT, WHOLE, REST, BN, BK, True,
        )  # fmt: skip
    else:
        _multiply(
            out, x, rows, e, tile, bias, choices, row_stride, choice_stride, weight, scales, zeros,
            E, N, K, KIND, GROUP, BLOCK, TOP, ACT, WOVEN, LIMIT, ALPHA, SHIFT, WHOLE, BM, BN, BK, SWAP,
        )  # fmt: skip


@kernel
def _multiply(
    out, x, rows, e, tile, bias, choices, row_stride, choice_stride, weight, scales, zeros,
    E: tl.constexpr, N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, TOP: tl.constexpr, ACT: tl.constexpr, WOVEN: tl.constexpr, LIMIT: tl.constexpr,
    ALPHA: tl.constexpr, SHIFT: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """``BM`` choices ``rows`` with a tile of rows of expert ``e``."""
    OUT: tl.constexpr = N // 2 if ACT is not None else N
    n = expert_rows(tile, BN, N, ACT is not None and not WOVEN)
    row = tl.load(rows + tl.arange(0, BM))
    good = row < choices
    chosen = e < E
    e = tl.where(chosen, e, 0)
    of = tl.where(good, row, 0)
    x += ((of // TOP).to(tl.int64) * row_stride + of % TOP * choice_stride)[:, None]
    acc = tl.zeros([BN, BM] if SWAP else [BM, BN], tl.float32)
    for first in tl.range(0, tl.where(chosen, K, 0), BK):
        k = first + tl.arange(0, BK)
        there = good[:, None]
        if K % BK != 0:
            there = there & (k < K)[None, :]
        a = tl.load(x + k[None, :], there, 0.0)
        w = stored(weight, e, n, first, True, N, K, KIND, BN, BK, "")
        b = _meaning(
            w, scales, zeros, e, n, first, x.dtype.element_ty, N, K, KIND, GROUP, BLOCK, BN, BK, WHOLE
        )
        acc = dot(b, tl.trans(a), acc) if SWAP else dot(a, tl.trans(b), acc)
    if SWAP:
        acc = tl.trans(acc)
    if WHOLE:
        acc *= of_group(scales, e, n, 0, N, K, GROUP, BLOCK)[None, :]
    if bias is not None:
        acc += tl.load(bias + e * N + n, chosen & (n < N), 0).to(tl.float32)[None, :]
    at = tile * BN + tl.arange(0, BN)
    if ACT is not None:
        gate, up = tl.split(tl.reshape(acc, [BM, BN // 2, 2]))
        acc = gated(gate, up, ACT, LIMIT, ALPHA, SHIFT)
        at = tile * (BN // 2) + tl.arange(0, BN // 2)
    to = out + row.to(tl.int64)[:, None] * OUT + at[None, :]
    tl.store(to, rounded(acc, out.dtype.element_ty), good[:, None] & (at < OUT)[None, :])


@kernel
def _meaning(
    w, scales, zeros, e, n, first, to: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """What stored entries stand for, in the element ``to``: [BN, BK]. With ``WHOLE`` before its scale."""
    if KIND == "plain":
        return w.to(to)
    elif WHOLE:
        return rounded(w.to(tl.float32), to)
    else:
        if KIND == "bytes":
            w = w.to(tl.float32)
        else:
            low, high = halves(w, KIND)
            w = tl.interleave(low, high)
        if zeros is not None:
            w -= of_group(zeros, e, n, first, N, K, GROUP, BLOCK)[:, None]
        return rounded(w * of_group(scales, e, n, first, N, K, GROUP, BLOCK)[:, None], to)


def combine(
    out: torch.Tensor,
    x: torch.Tensor,
    index: torch.Tensor | None,
    weights: torch.Tensor,
    experts: int,
    residual: torch.Tensor | None,
    real: torch.Tensor | None,
) -> None:
    """``out`` [t, n]: the rows of ``x`` [t, k, n] times ``weights`` [t, k], summed, and ``residual`` [t, n].

    With ``index`` rows that chose none of so many ``experts`` do not count.
    """
    tokens, n = out.shape
    width = min(1024, triton.next_power_of_2(n))
    _combine[(tokens, triton.cdiv(n, width))](
        out, x, index, weights, residual, real, out.stride(0),
        0 if residual is None else residual.stride(0), x.stride(0), x.stride(1), weights.stride(0),
        E=experts, N=n, TOP=weights.shape[1], WIDTH=width, **options(num_warps=max(1, width // 256)),
    )  # fmt: skip


@kernel
def _combine(
    out, x, index, weights, residual, real, out_stride, residual_stride, row_stride, choice_stride, by_stride,
    E: tl.constexpr, N: tl.constexpr, TOP: tl.constexpr, WIDTH: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    good = at < N
    wait(CHAIN)
    go_on(CHAIN)
    mine = True
    if real is not None:
        mine = token < tl.load(real)
    total = tl.zeros([WIDTH], tl.float32)
    if residual is not None:
        total += tl.load(residual + token * residual_stride + at, good, 0).to(tl.float32)
    for j in tl.static_range(TOP):
        chosen = mine
        if index is not None:
            e = tl.load(index + token * TOP + j)
            chosen = chosen & (e >= 0) & (e < E)
        by = tl.load(weights + token * by_stride + j, chosen, 0).to(tl.float32)
        total += by * tl.load(x + token * row_stride + j * choice_stride + at, good & chosen, 0).to(
            tl.float32
        )
    tl.store(out + token * out_stride + at, rounded(total, out.dtype.element_ty), good)
