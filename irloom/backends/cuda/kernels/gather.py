"""Experts of few tokens: a matrix-vector product for each choice, at the speed at which weights are read.

Nothing is sorted. Tokens that chose the same expert read its rows at the same time, and so from the cache.
A sum depends on nothing but its own row and matrix: results are the same whatever else is in the batch.
"""

# ruff: noqa: RUF005 (Triton joins tuples, but does not unpack them)
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportOperatorIssue=false
# (tuples of a kernel grow, and its loops are unrolled, before there are types)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .form import Gate
from .mode import go_on, kernel, options, rounded, tl, triton, wait
from .stack import Stack, expert_rows, gate_arguments, gated, halves, of_chunks, stored


@dataclass(frozen=True)
class Gather:
    """A program's tiles: ``rows`` of a matrix, ``entries`` of each (as many bytes whatever an entry has);
    ``depth`` tiles are in flight. It has so many ``parts`` of rows one after the other, and at most so many
    ``registers`` a thread.
    """

    rows: int
    entries: int
    warps: int
    depth: int
    parts: int = 1
    registers: int | None = None

    def sizes(self, stack: Stack, joined: int) -> dict[str, Any]:
        """What a launch is given, where the rows of so many experts are ``joined`` to one."""
        width = stack.dims[2]
        wide = min(stack.chunk, width & -width) if joined > 1 else stack.chunk
        here = min(self.entries * max(1, stack.chunk // 8), triton.next_power_of_2(width * joined))
        depth = min(self.depth, triton.cdiv(width * joined, here) * self.parts)
        sizes = {"BN": self.rows, "BK": here, "WIDE": min(wide, here), "DEPTH": depth}
        return sizes | options(num_warps=self.warps, maxnreg=self.registers)


AHEAD = tl.constexpr(8)
"""Steps whose entries of a token's row are read at once."""

PRODUCTS = (
    Gather(4, 2048, 4, 1, 2), Gather(4, 1024, 4, 2), Gather(2, 2048, 4, 1), Gather(8, 256, 4, 8),
    Gather(8, 1024, 4, 2), Gather(16, 512, 8, 4),
)  # fmt: skip
"""What is tried for products that are written for each choice."""

SUMS = (
    Gather(2, 512, 2, 8), Gather(8, 1024, 4, 3), Gather(4, 1024, 4, 3), Gather(4, 256, 4, 8),
    Gather(4, 1024, 4, 4), Gather(8, 2048, 8, 3, 1, 128),
)  # fmt: skip
"""What is tried for those that are summed at once."""


def gather_product(
    out: torch.Tensor,
    x: torch.Tensor,
    index: torch.Tensor | None,
    stack: Stack,
    bias: torch.Tensor | None,
    real: torch.Tensor | None,
    gate: Gate | None,
    how: Gather,
) -> None:
    """``out`` [t, k, n]: ``stack[index] @ x`` for each choice, and ``bias`` [e, n]; 0 for a choice of none.

    ``x`` is [t, h] or [t, k, h]. With a ``gate`` ``out`` is what it makes of the rows, half as wide.
    Without ``index`` choice ``j`` is expert ``j``.
    """
    tokens, k = out.shape[:2]
    grid = (tokens * k, triton.cdiv(stack.dims[1], how.rows * how.parts))
    _product[grid](
        out, x, index, bias, real, x.stride(0), x.stride(1) if x.ndim == 3 else 0, **stack.arguments(),
        TOP=k, **gate_arguments(gate), PARTS=how.parts, USE=_use(tokens), **how.sizes(stack, 1),
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
    _sum[(triton.cdiv(stack.dims[1], how.rows), tokens)](
        out, x, index, weights, bias, residual, real, out.stride(0),
        0 if residual is None else residual.stride(0), **stack.arguments(), TOP=k, USE=_use(tokens),
        **how.sizes(stack, k),
    )  # fmt: skip


def _use(tokens: int) -> str:
    """How caches are to treat weights: those of one token are read once."""
    return "evict_first" if tokens == 1 else ""


@kernel
def _product(
    out, x, index, bias, real, row_stride, choice_stride, weight, scales, zeros,
    E: tl.constexpr, N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, TOP: tl.constexpr, ACT: tl.constexpr, WOVEN: tl.constexpr, LIMIT: tl.constexpr,
    ALPHA: tl.constexpr, SHIFT: tl.constexpr, PARTS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    WIDE: tl.constexpr, DEPTH: tl.constexpr, USE: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """A program per choice and ``PARTS`` tiles of rows; programs of the same rows and all choices are
    neighbours. What is behind may start only when this has waited for the experts: see ``_sum``.
    """
    APART: tl.constexpr = ACT is not None and not WOVEN
    STEPS: tl.constexpr = (K + BK - 1) // BK
    choice, first = tl.program_id(0), tl.program_id(1) * PARTS
    wait(CHAIN)
    go_on(CHAIN)
    e = choice % TOP if index is None else tl.load(index + choice)
    if real is not None:
        e = tl.where(choice // TOP < tl.load(real), e, -1)
    chosen = (e >= 0) & (e < E)
    e = tl.where(chosen, e, 0)
    x += (choice // TOP).to(tl.int64) * row_stride + choice % TOP * choice_stride
    ring = ()
    for q in tl.static_range(DEPTH):
        n = expert_rows(first + q // STEPS, BN, N, APART)
        ring = ring + (stored(weight, e, n, q % STEPS * BK, chosen, N, K, KIND, BN, BK, USE),)
    for p in tl.static_range(PARTS):
        n = expert_rows(first + p, BN, N, APART)
        acc = tl.zeros([BN, BK // WIDE], tl.float32)
        for s in tl.static_range(STEPS):
            if p * STEPS + s + DEPTH < PARTS * STEPS:
                later = expert_rows(first + p + (s + DEPTH) // STEPS, BN, N, APART)
                ring = ring + (
                    stored(weight, e, later, (s + DEPTH) % STEPS * BK, chosen, N, K, KIND, BN, BK, USE),
                )
            acc = added(
                acc,
                ring[p * STEPS + s],
                x,
                scales,
                zeros,
                e,
                n,
                s * BK,
                chosen,
                N,
                K,
                KIND,
                GROUP,
                BLOCK,
                BN,
                BK,
                WIDE,
            )
        total = tl.sum(acc, 1)
        if bias is not None:
            total += tl.load(bias + e * N + n, chosen & (n < N), 0).to(tl.float32)
        if ACT is not None:
            gate, up = tl.split(tl.reshape(total, [BN // 2, 2]))
            total = gated(gate, up, ACT, LIMIT, ALPHA, SHIFT)
            at = (first + p) * (BN // 2) + tl.arange(0, BN // 2)
            tl.store(out + choice * (N // 2) + at, rounded(total, out.dtype.element_ty), at < N // 2)
        else:
            tl.store(out + choice * N + n, rounded(total, out.dtype.element_ty), n < N)


@kernel
def _sum(
    out, x, index, weights, bias, residual, real, out_stride, residual_stride, weight, scales, zeros,
    E: tl.constexpr, N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, TOP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
    DEPTH: tl.constexpr, USE: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """A program per tile of rows and token: the rows of all its experts, joined, are one for it.

    The first ``DEPTH`` tiles are read before all that is in front has ended: ``index`` is complete by then,
    since the product in front waited for it before it let this kernel start.
    """
    STEPS: tl.constexpr = (TOP * K + BK - 1) // BK
    tile, token = tl.program_id(0), tl.program_id(1)
    n = tile * BN + tl.arange(0, BN)
    experts, ring, rows, by = (), (), (), ()
    for j in tl.static_range(TOP):
        experts = experts + (tl.load(index + token * TOP + j, cache_modifier=".cg"),)
    for s in tl.static_range(DEPTH):
        ring = ring + (
            joined(weight, scales, zeros, experts, n, s, E, N, K, KIND, GROUP, BLOCK, TOP, BN, BK, WIDE, USE),
        )
    wait(CHAIN)
    go_on(CHAIN)
    mine = True
    if real is not None:
        mine = token < tl.load(real)
    x += token.to(tl.int64) * (TOP * K)
    for s in tl.static_range(STEPS):
        if s < AHEAD:
            rows = rows + (_row(x, s, mine, K, TOP, BK),)
    total = tl.zeros([BN], tl.float32)
    if residual is not None:
        total += tl.load(residual + token.to(tl.int64) * residual_stride + n, n < N, 0).to(tl.float32)
    for j in tl.static_range(TOP):
        chosen = mine & (experts[j] >= 0) & (experts[j] < E)
        by = by + (tl.load(weights + token * TOP + j, chosen, 0.0).to(tl.float32),)
        if bias is not None:
            shift = tl.load(bias + tl.where(chosen, experts[j], 0) * N + n, chosen & (n < N), 0)
            total += by[j] * shift.to(tl.float32)
    acc = tl.zeros([BN, BK // WIDE], tl.float32)
    for s in tl.static_range(STEPS):
        row = rows[s].to(tl.float32) * of_choices(by, s * BK, BK, 1, K, TOP)[0]
        acc += products(ring[s], row, zeros, KIND, BN, BK, WIDE)
        if s + AHEAD < STEPS:
            rows = rows + (_row(x, s + AHEAD, mine, K, TOP, BK),)
        if s + DEPTH < STEPS:
            tile_ahead = joined(
                weight, scales, zeros, experts, n, s + DEPTH, E, N, K, KIND, GROUP, BLOCK, TOP, BN, BK, WIDE,
                USE,
            )  # fmt: skip
            ring = ring + (tile_ahead,)
    total += tl.sum(acc, 1)
    tl.store(out + token.to(tl.int64) * out_stride + n, rounded(total, out.dtype.element_ty), n < N)


@kernel
def _row(x, step, mine, K: tl.constexpr, TOP: tl.constexpr, BK: tl.constexpr):
    """Entries of what a token's experts are given, one behind the other."""
    at = step * BK + tl.arange(0, BK)
    return tl.load(x + at, mine & (at < TOP * K), 0)


@kernel
def of_choices(values, first, COUNT: tl.constexpr, UNIT: tl.constexpr, K: tl.constexpr, TOP: tl.constexpr):
    """For ``COUNT`` entries of joined rows, ``UNIT`` apart from ``first`` on: the one of ``values`` of the
    choice that each is of, where its row begins, and its place.
    """
    at = first + tl.arange(0, COUNT) * UNIT
    mine, begin = values[0], at * 0
    for j in tl.static_range(1, TOP):
        if j * K < first + COUNT * UNIT:
            mine = tl.where(at >= j * K, values[j], mine)
            begin = tl.where(at >= j * K, j * K, begin)
    return mine + tl.zeros([COUNT], mine.dtype), begin, at


@kernel
def joined(
    weight, scales, zeros, experts, n, step, E: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    KIND: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, TOP: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, WIDE: tl.constexpr, USE: tl.constexpr,
):  # fmt: skip
    """What is stored of rows ``n`` of a token's experts, joined: entries as ``stored`` has them, then scales
    and zeros f32 [BN, BK / WIDE] where there are any.
    """
    SHARED: tl.constexpr = 2 if KIND == "signed" or KIND == "unsigned" else 1
    e, begin, at = of_choices(experts, step * BK, BK // SHARED, SHARED, K, TOP)
    there = (e >= 0) & (e < E) & (at < TOP * K)
    to = tl.where(there, e, 0).to(tl.int64) * (N * (K // SHARED)) + (at - begin) // SHARED
    if K % WIDE == 0:
        to = tl.max_contiguous(tl.multiple_of(to, WIDE // SHARED), WIDE // SHARED)
        there = tl.max_constancy(there, WIDE // SHARED)
    good = there[None, :] if N % BN == 0 else there[None, :] & (n < N)[:, None]
    tile = (tl.load(weight + n[:, None] * (K // SHARED) + to[None, :], good, 0.0, eviction_policy=USE),)
    if KIND != "plain":
        e, begin, at = of_choices(experts, step * BK, BK // WIDE, WIDE, K, TOP)
        there = (e >= 0) & (e < E) & (at < TOP * K)
        to = tl.where(there, e, 0) * ((N + BLOCK - 1) // BLOCK * (K // GROUP)) + (at - begin) // GROUP
        of, good = (n // BLOCK * (K // GROUP))[:, None] + to[None, :], there[None, :] & (n < N)[:, None]
        tile = tile + (tl.load(scales + of, good, 0).to(tl.float32),)
        if zeros is not None:
            tile = tile + (tl.load(zeros + of, good, 0).to(tl.float32),)
    return tile


@kernel
def products(tile, row, zeros, KIND: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr):
    """The products of a tile and a row f32 [BK]: a thread's sums f32 [BN, BK / WIDE]."""
    CHUNKS: tl.constexpr = BK // WIDE
    if KIND == "plain" or KIND == "bytes":
        part = tl.sum(tl.reshape(tile[0].to(tl.float32) * row[None, :], [BN, CHUNKS, WIDE]), 2)
    else:
        low, high = halves(tile[0], KIND)
        even, odd = tl.split(tl.reshape(row, [BK // 2, 2]))
        part = tl.sum(tl.reshape(low * even[None, :] + high * odd[None, :], [BN, CHUNKS, WIDE // 2]), 2)
    if KIND != "plain":
        if zeros is not None:
            part -= tile[2] * tl.sum(tl.reshape(row, [CHUNKS, WIDE]), 1)[None, :]
        part *= tile[1]
    return part


@kernel
def added(
    acc, w, x, scales, zeros, e, n, first, there,
    N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``acc`` with the products of stored entries ``w`` and of ``x``, from ``first`` on.

    It is f32 [BN, BK / WIDE]: a thread sums the ``WIDE`` entries that it has of a row, which share a scale.
    """
    CHUNKS: tl.constexpr = BK // WIDE
    k = first + tl.arange(0, BK)
    good = there
    if K % BK != 0:
        good = good & (k < K)
    if KIND == "plain" and CHUNKS <= 32:  # a warp has whole rows: each reads its own, and none is passed on
        rows = tl.zeros([BN, BK], tl.int32) + k[None, :]
        row = tl.load(x + rows, there & (rows < K), 0).to(tl.float32)
        return acc + tl.sum(tl.reshape(w.to(tl.float32) * row, [BN, CHUNKS, WIDE]), 2)
    row = tl.load(x + k, good, 0).to(tl.float32)
    tile = (w,)
    if KIND != "plain":
        tile = tile + (of_chunks(scales, e, n, first, there, N, K, GROUP, BLOCK, CHUNKS, WIDE),)
        if zeros is not None:
            tile = tile + (of_chunks(zeros, e, n, first, there, N, K, GROUP, BLOCK, CHUNKS, WIDE),)
    return acc + products(tile, row, zeros, KIND, BN, BK, WIDE)
