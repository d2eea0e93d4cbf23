"""Experts of very many tokens: Hopper's copy engine brings their weights, and rows that are sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .align import Blocks
from .boxes import box, has_boxes, stack_box
from .form import Gate
from .mode import dot, go_on, kernel, options, rounded, tl, triton, wait
from .stack import Stack, gate_arguments, gated


@dataclass(frozen=True)
class Boxed:
    """``height`` rows of a block by ``rows`` of a matrix (of each half, if gated), ``entries`` at a time."""

    height: int
    rows: int
    entries: int
    warps: int
    stages: int


UP = Boxed(128, 128, 64, 8, 4)
PAIRS = (UP, Boxed(128, 256, 64, 8, 4)), (UP, Boxed(128, 128, 64, 4, 3))
"""What is tried for both products of a mixture: the wider second is ahead at 256 rows an expert, the narrower
one at 512.
"""


def has_tiles(x: torch.Tensor, *stacks: Stack) -> bool:
    """Whether the tensor cores multiply these as they are, and the copy engine moves them."""
    plain = all(s.kind == "plain" and s.values.dtype == x.dtype for s in stacks)
    return plain and x.dtype != torch.float32 and has_boxes(*(s.values.flatten(0, 1) for s in stacks))


def boxed_product(
    out: torch.Tensor,
    x: torch.Tensor,
    blocks: Blocks,
    stack: Stack,
    bias: torch.Tensor | None,
    gate: Gate | None,
    dims: Sequence[int],
    how: Boxed,
) -> None:
    """As ``grouped_product`` for ``dims`` choices [t, k], with a ``gate`` from rows of tokens ``x`` [t, h] to
    rows ``out`` in the order of ``blocks``, whose fillings are anything; without one from there to [t, k, n].
    """
    _, height, width = stack.dims
    halves = 2 if gate is not None and not gate.woven else 1
    across = triton.cdiv(height // halves, how.rows)
    _boxed[(len(blocks) * across,)](
        out, x if gate else box(x, how.height, how.entries),
        stack_box(stack.values, halves, how.rows, how.entries), blocks.rows, blocks.experts, bias,
        dims[0] * dims[1], across, x.stride(0),
        N=height, K=width, TOP=dims[1], HALVES=halves, **gate_arguments(gate), BM=how.height, BN=how.rows,
        BK=how.entries, **options(num_warps=how.warps, num_stages=how.stages),
    )  # fmt: skip


@kernel
def _boxed(
    out, x, w, rows, owner, bias, choices, tiles, row_stride,
    N: tl.constexpr, K: tl.constexpr, TOP: tl.constexpr, HALVES: tl.constexpr, ACT: tl.constexpr,
    WOVEN: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, SHIFT: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """A program per block and tile of rows of its expert; tiles of a block are neighbours."""
    OUT: tl.constexpr = N // 2 if ACT is not None else N
    block, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    wait(CHAIN)
    go_on(CHAIN)
    e = tl.load(owner + block)
    if e < 0:
        return
    at = block * BM + tl.arange(0, BM)
    row = tl.load(rows + at)
    good = row < choices
    acc = tl.zeros((BM, BN * HALVES), tl.float32)
    x_rows = x
    if ACT is not None:
        x_rows = x + (tl.where(good, row, 0) // TOP).to(tl.int64)[:, None] * row_stride
    for k in tl.range(0, K, BK):
        if ACT is not None:
            n = k + tl.arange(0, BK)
            there = good[:, None]
            if K % BK != 0:
                there = there & (n < K)[None, :]
            a = tl.load(x_rows + n[None, :], there, 0.0)
        else:
            a = x.load([block * BM, k])
        acc = dot(a, w.load([e * HALVES, tile * BN, k]).reshape(HALVES * BN, BK).T, acc)
    n = tile * BN + tl.arange(0, BN)
    if HALVES == 2:
        left, right = acc.reshape(BM, 2, BN).permute(0, 2, 1).split()
        left, right = _biased(left, bias, e * N, n, OUT), _biased(right, bias, e * N + OUT, n, OUT)
        acc = gated(left, right, ACT, LIMIT, ALPHA, SHIFT)
    else:
        acc = _biased(acc, bias, e * N, n, N)
        if ACT is not None:
            left, right = acc.reshape(BM, BN // 2, 2).split()
            acc = gated(left, right, ACT, LIMIT, ALPHA, SHIFT)
            n = tile * (BN // 2) + tl.arange(0, BN // 2)
    to = at if ACT is not None else row
    there = good[:, None] & (n < OUT)[None, :]
    tl.store(out + to.to(tl.int64)[:, None] * OUT + n[None, :], rounded(acc, out.dtype.element_ty), there)


@kernel
def _biased(acc, bias, first, n, N: tl.constexpr):
    """Sums with the entries ``n`` of a bias behind ``first``, where there is one."""
    if bias is not None:
        acc += tl.load(bias + first + n, n < N, 0.0).to(tl.float32)[None, :]
    return acc
