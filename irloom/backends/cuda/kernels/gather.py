"""Experts of few tokens: a matrix-vector product for each choice, at the speed at which weights are read.

Nothing is sorted. Tokens that chose the same expert read its rows at the same time, and so from the cache.
A sum depends on nothing but its own row and matrix: results are the same whatever else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .curves import activated
from .mode import go_on, kernel, options, rounded, tl, triton, wait
from .stack import Stack, expert_rows, halves, of_chunks, stored


@dataclass(frozen=True)
class Gather:
    """A program's tile: ``rows`` of a matrix, ``entries`` of each at a time, ``stages`` of them under way."""

    rows: int
    entries: int
    warps: int
    stages: int = 1


PRODUCTS = (
    Gather(8, 512, 4, 3), Gather(8, 512, 4), Gather(8, 1024, 4), Gather(8, 2048, 4), Gather(4, 2048, 4),
    Gather(16, 512, 4), Gather(16, 1024, 8), Gather(8, 512, 2), Gather(16, 512, 4, 3), Gather(4, 1024, 2),
)  # fmt: skip
"""What is tried for products that are written for each choice."""

SUMS = (
    Gather(8, 256, 4), Gather(16, 256, 4), Gather(4, 1024, 4), Gather(8, 1024, 4), Gather(8, 256, 2),
    Gather(32, 256, 8), Gather(4, 512, 4), Gather(4, 256, 2),
)  # fmt: skip
"""What is tried for those that are summed at once."""


def gather_product(
    out: torch.Tensor,
    x: torch.Tensor,
    index: torch.Tensor | None,
    stack: Stack,
    bias: torch.Tensor | None,
    real: torch.Tensor | None,
    act: str | None,
    how: Gather,
) -> None:
    """``out`` [t, k, n]: ``stack[index] @ x`` for each choice, plus ``bias`` [e, n]; 0 for a choice of none.

    ``x`` is [t, h] or [t, k, h]. With ``act`` rows are [gate; up] and ``out`` is ``act(gate) * up``, half as
    wide. Without ``index`` choice ``j`` is expert ``j``.
    """
    tokens, k = out.shape[:2]
    height = stack.dims[1]
    grid = (tokens * k, triton.cdiv(height, how.rows))
    _product[grid](
        out, x, index, bias, real, x.stride(0), x.stride(1) if x.ndim == 3 else 0, **stack.arguments(),
        TOP=k, ACT=act, BN=how.rows, BK=_entries(stack, how), WIDE=_wide(stack, how), STAGES=how.stages,
        **options(num_warps=how.warps),
    )  # fmt: skip


def gather_sum(
    out: torch.Tensor,
    x: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
    stack: Stack,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    real: torch.Tensor | None,
    how: Gather,
) -> None:
    """``out`` [t, n]: products of ``x`` [t, k, h] with each choice's matrix, summed by ``weights`` [t, k].

    ``residual`` [t, n] is added. To be launched right behind a kernel that itself waited for ``index``: the
    first weights are read before that has ended.
    """
    tokens, k = index.shape
    height = stack.dims[1]
    grid = (triton.cdiv(height, how.rows), tokens)
    _sum[grid](
        out, x, index, weights, bias, residual, real, out.stride(0),
        0 if residual is None else residual.stride(0), **stack.arguments(),
        TOP=k, BN=how.rows, BK=_entries(stack, how), WIDE=_wide(stack, how), **options(num_warps=how.warps),
    )  # fmt: skip


def _entries(stack: Stack, how: Gather) -> int:
    """Entries of a row at a time, as many bytes whatever an entry has: a power of two, all at once or what
    leaves no rest where that is not too few.
    """
    width = stack.dims[2]
    asked, whole, every = (
        how.entries * max(1, stack.chunk // 8),
        width & -width,
        1 << (width - 1).bit_length(),
    )
    return min(asked, every if asked >= every or whole < 128 else whole)


def _wide(stack: Stack, how: Gather) -> int:
    """Entries of a row that a thread has of those."""
    return min(stack.chunk, _entries(stack, how))


@kernel
def _product(
    out, x, index, bias, real, row_stride, choice_stride, weight, scales, zeros,
    E: tl.constexpr, N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, TOP: tl.constexpr, ACT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    WIDE: tl.constexpr, STAGES: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """A program per choice and tile of rows; programs of one tile and all choices are neighbours."""
    choice, tile = tl.program_id(0), tl.program_id(1)
    n = expert_rows(tile, BN, N, ACT is not None)
    wait(CHAIN)
    go_on(CHAIN)
    e = choice % TOP if index is None else tl.load(index + choice)
    if real is not None:
        e = tl.where(choice // TOP < tl.load(real), e, -1)
    chosen = (e >= 0) & (e < E)
    e = tl.where(chosen, e, 0)
    x += (choice // TOP).to(tl.int64) * row_stride + choice % TOP * choice_stride
    acc = tl.zeros([BN, BK // WIDE], tl.float32)
    for first in tl.range(0, tl.where(chosen, K, 0), BK, num_stages=STAGES):
        w = stored(weight, e, n, first, chosen, N, K, KIND, BN, BK)
        acc = added(
            acc, w, x, scales, zeros, e, n, first, chosen, 1.0, N, K, KIND, GROUP, BLOCK, BN, BK, WIDE
        )
    total = tl.sum(acc, 1)
    if bias is not None:
        total += tl.load(bias + e * N + n, chosen & (n < N), 0).to(tl.float32)
    if ACT is not None:
        gate, up = tl.split(tl.reshape(total, [BN // 2, 2]))
        total = activated(gate, ACT) * up
        at = tile * (BN // 2) + tl.arange(0, BN // 2)
        tl.store(out + choice * (N // 2) + at, rounded(total, out.dtype.element_ty), at < N // 2)
    else:
        tl.store(out + choice * N + n, rounded(total, out.dtype.element_ty), n < N)


@kernel
def _sum(
    out, x, index, weights, bias, residual, real, out_stride, residual_stride, weight, scales, zeros,
    E: tl.constexpr, N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, TOP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
    CHAIN: tl.constexpr,
):  # fmt: skip
    """A program per tile of rows and token, over all of the token's choices.

    The first tile of weights is read before all that is in front has ended: ``index`` is complete by then,
    since the product in front waited for it before it let this kernel start.
    """
    STEPS: tl.constexpr = (K + BK - 1) // BK
    tile, token = tl.program_id(0), tl.program_id(1)
    n = tile * BN + tl.arange(0, BN)
    good = n < N
    index += token * TOP
    e, chosen = _expert(index, 0, E)
    w = stored(weight, e, n, 0, chosen, N, K, KIND, BN, BK)
    wait(CHAIN)
    go_on(CHAIN)
    mine = True
    if real is not None:
        mine = token < tl.load(real)
    acc = tl.zeros([BN, BK // WIDE], tl.float32)
    shift = tl.zeros([BN], tl.float32)
    for step in tl.range(0, tl.where(mine, TOP * STEPS, 0)):
        j = step // STEPS
        e, chosen = _expert(index, j, E)
        after, more = _expert(index, tl.minimum((step + 1) // STEPS, TOP - 1), E)
        more = more & (step + 1 < TOP * STEPS)
        ahead = stored(weight, after, n, (step + 1) % STEPS * BK, more, N, K, KIND, BN, BK)
        by = tl.load(weights + token * TOP + j, chosen, 0.0).to(tl.float32)
        row = x + (token * TOP + j).to(tl.int64) * K
        first = step % STEPS * BK
        acc = added(
            acc, w, row, scales, zeros, e, n, first, chosen, by, N, K, KIND, GROUP, BLOCK, BN, BK, WIDE
        )
        if bias is not None:
            shift += by * tl.load(bias + e * N + n, good & chosen & (first == 0), 0).to(tl.float32)
        w = ahead
    total = tl.sum(acc, 1) + shift
    if residual is not None:
        total += tl.load(residual + token.to(tl.int64) * residual_stride + n, good, 0).to(tl.float32)
    tl.store(out + token.to(tl.int64) * out_stride + n, rounded(total, out.dtype.element_ty), good)


@kernel
def _expert(index, j, E: tl.constexpr):
    """Choice ``j`` of a token, past the L1 cache (another kernel wrote it), and whether it is one."""
    e = tl.load(index + j, cache_modifier=".cg")
    chosen = (e >= 0) & (e < E)
    return tl.where(chosen, e, 0), chosen


@kernel
def added(
    acc, w, x, scales, zeros, e, n, first, there, by,
    N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``acc`` with the products of stored entries ``w`` and of ``by`` times ``x``, from ``first`` on.

    It is f32 [BN, BK / WIDE]: a thread sums the ``WIDE`` entries that it has of a row, which share a scale.
    """
    CHUNKS: tl.constexpr = BK // WIDE
    k = first + tl.arange(0, BK)
    good = there
    if K % BK != 0:
        good = good & (k < K)
    row = tl.load(x + k, good, 0).to(tl.float32) * by
    if KIND == "plain" or KIND == "bytes":
        part = tl.sum(tl.reshape(w.to(tl.float32) * row[None, :], [BN, CHUNKS, WIDE]), 2)
    else:
        low, high = halves(w, KIND)
        even, odd = tl.split(tl.reshape(row, [BK // 2, 2]))
        part = low * even[None, :] + high * odd[None, :]
        part = tl.sum(tl.reshape(part, [BN, CHUNKS, WIDE // 2]), 2)
    if KIND != "plain":
        if zeros is not None:
            zero = of_chunks(zeros, e, n, first, there, N, K, GROUP, BLOCK, CHUNKS, WIDE)
            part -= zero * tl.sum(tl.reshape(row, [CHUNKS, WIDE]), 1)[None, :]
        part *= of_chunks(scales, e, n, first, there, N, K, GROUP, BLOCK, CHUNKS, WIDE)
    return acc + part
