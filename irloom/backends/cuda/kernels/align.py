"""Sorting choices by expert on the device, in blocks of rows that one matrix product takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from irloom.backends.cuda.work import Workspace

from .mode import go_on, kernel, options, tl, triton, varying, wait
from .tiles import power_of_two

MANY = 4096
"""Choices up to which each expert's program reads all of them."""
PIECE = 256
"""Of more, the choices that a program places: each is compared with all others of its piece."""
PARTS = 64
"""How many sums of pieces a program reads, at most, to know what is in front of its own."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """``rows`` i32 [blocks * height]: choices (token * k + which), expert after expert in their order, each
    expert's filled up to whole blocks by numbers of no choice. ``experts`` i32 [blocks]: whose block each is,
    -1 behind the last. How many are in use only the device knows.
    """

    rows: torch.Tensor
    experts: torch.Tensor
    height: int

    def __len__(self) -> int:
        return len(self.experts)


def align(
    index: torch.Tensor | None,
    real: torch.Tensor | None,
    dims: Sequence[int],
    experts: int,
    height: int,
    work: Workspace,
    *,
    every: bool,
) -> Blocks:
    """The choices ``index`` of the first ``real`` [1] tokens, in blocks of ``height``; ``dims`` are t and k.

    Without ``index`` choice ``j`` is expert ``j``. With ``every`` those that choose no expert (and all of the
    other tokens) are the last blocks, those of expert ``experts``; without they are left out.
    """
    choices = dims[0] * dims[1]
    kinds = experts + every
    used = min(choices, kinds)
    most = used + (choices - used) // height  # every expert in use has a block, and one per height more
    rows = work.take((most * height,), torch.int32)
    owner = work.take((most,), torch.int32)
    if choices > MANY:
        pieces = -(-choices // PIECE)
        each = -(-pieces // PARTS)  # pieces of a part
        parts, bins = -(-pieces // each), power_of_two(kinds)
        counts, before = (work.take((n, bins), torch.int32) for n in (parts, parts * each))
        sizes = {"E": experts, "KINDS": kinds, "PIECE": PIECE, **options(num_warps=PIECE // 32)}
        _count[(parts,)](counts, before, index, real, choices, dims[1], each, **sizes)
        _place[(pieces,)](
            rows, owner, counts, before, index, real, choices, most, dims[1], each, parts,
            HEIGHT=height, SLAB=max(8, min(PARTS, 8192 // bins)), **sizes,
        )  # fmt: skip
        return Blocks(rows, owner, height)
    step = max(16, min(2048, triton.next_power_of_2(choices)))
    _align[(kinds,)](
        rows, owner, index, real, choices, most, dims[1],
        E=experts, KINDS=kinds, HEIGHT=height, STEP=step, **options(num_warps=4 if step <= 1024 else 8),
    )  # fmt: skip
    return Blocks(rows, owner, height)


@varying("choices", "most")
def _align(
    rows, owner, index, real, choices, most, k,
    E: tl.constexpr, KINDS: tl.constexpr, HEIGHT: tl.constexpr, STEP: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """A program per expert: counts every expert's choices, so where its own begin, then writes those."""
    BINS: tl.constexpr = triton.next_power_of_2(KINDS)
    me = tl.program_id(0)
    wait(CHAIN)
    go_on(CHAIN)
    there = _there(real, choices, k)
    bins = tl.arange(0, BINS)
    counts = tl.zeros([BINS], tl.int32)
    for start in tl.range(0, choices, STEP):
        kind = _kinds(index, start, there, choices, k, E, KINDS, STEP)
        counts += tl.histogram(kind, BINS, mask=kind >= 0)
    blocks = (counts + HEIGHT - 1) // HEIGHT
    first = tl.sum(tl.where(bins < me, blocks, 0), 0)
    mine = tl.sum(tl.where(bins == me, blocks, 0), 0)
    for start in tl.range(0, mine, 32):
        at = start + tl.arange(0, 32)
        tl.store(owner + first + at, tl.zeros([32], tl.int32) + me, at < mine)
    done = first * HEIGHT
    for start in tl.range(0, choices, STEP):
        its = (_kinds(index, start, there, choices, k, E, KINDS, STEP) == me).to(tl.int32)
        place = done + tl.cumsum(its, 0) - 1
        tl.store(rows + place, start + tl.arange(0, STEP), its > 0)
        done += tl.sum(its, 0)
    fill = done + tl.arange(0, triton.next_power_of_2(HEIGHT))
    tl.store(rows + fill, tl.zeros_like(fill) + choices, fill < (first + mine) * HEIGHT)
    if me == KINDS - 1:
        for start in tl.range(first + mine, most, STEP):
            at = start + tl.arange(0, STEP)
            tl.store(owner + at, tl.full([STEP], -1, tl.int32), at < most)


@kernel
def _kinds(
    index, start, there, choices, k, E: tl.constexpr, KINDS: tl.constexpr, STEP: tl.constexpr
):  # fmt: skip
    """The expert of each of ``STEP`` choices i32; for none ``E`` where that is a kind, else -1."""
    at = start + tl.arange(0, STEP)
    if index is None:
        e = tl.where(at < there, at % k, -1)
    else:
        e = tl.load(index + at, at < there, -1)
    none = tl.where(at < choices, E, -1) if KINDS > E else -1
    return tl.where((e >= 0) & (e < E), e, none)


@varying("choices", "each")
def _count(
    counts, before, index, real, choices, k, each, E: tl.constexpr, KINDS: tl.constexpr, PIECE: tl.constexpr,
    CHAIN: tl.constexpr,
):  # fmt: skip
    """A program per part, which is ``each`` pieces: how many of its choices each expert has, and how many of
    them are ``before`` each piece.
    """
    BINS: tl.constexpr = triton.next_power_of_2(KINDS)
    bins, first = tl.arange(0, BINS), tl.program_id(0) * each
    wait(CHAIN)
    go_on(CHAIN)
    there = _there(real, choices, k)
    total = tl.zeros([BINS], tl.int32)
    for piece in tl.range(first, first + each):
        tl.store(before + piece * BINS + bins, total)
        kind = _kinds(index, piece * PIECE, there, choices, k, E, KINDS, PIECE)
        total += tl.histogram(kind, BINS, mask=kind >= 0)
    tl.store(counts + tl.program_id(0) * BINS + bins, total)


@varying("choices", "most", "each", "parts")
def _place(
    rows, owner, counts, before, index, real, choices, most, k, each, parts, E: tl.constexpr,
    KINDS: tl.constexpr, PIECE: tl.constexpr, HEIGHT: tl.constexpr, SLAB: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """A program per piece writes where its choices go, and what is left of some experts' blocks."""
    BINS: tl.constexpr = triton.next_power_of_2(KINDS)
    me, pieces = tl.program_id(0), tl.num_programs(0)
    bins, at = tl.arange(0, BINS), tl.arange(0, PIECE)
    wait(CHAIN)
    go_on(CHAIN)
    there = _there(real, choices, k)
    kind = _kinds(index, me * PIECE, there, choices, k, E, KINDS, PIECE)
    ahead = tl.load(before + me * BINS + bins)
    total = tl.zeros([BINS], tl.int32)
    for start in tl.range(0, parts, SLAB):
        part = start + tl.arange(0, SLAB)
        slab = tl.load(counts + part[:, None] * BINS + bins[None, :], (part < parts)[:, None], 0)
        total += tl.sum(slab, 0)
        ahead += tl.sum(tl.where((part < me // each)[:, None], slab, 0), 0)
    blocks = (total + HEIGHT - 1) // HEIGHT
    first = tl.cumsum(blocks, 0) - blocks
    place = tl.gather(first * HEIGHT + ahead, tl.maximum(kind, 0), 0)
    equal = tl.zeros([PIECE, 32], tl.int32)
    key = kind * PIECE + at - 1
    for start in tl.range(0, PIECE, 32):  # all at once are more than fits in registers
        other = _kinds(index, me * PIECE + start, there, choices, k, E, KINDS, 32) * PIECE
        apart = key[:, None] - (other + start + tl.arange(0, 32))[None, :]
        equal += (apart.to(tl.uint32) < at[:, None].to(tl.uint32)).to(tl.int32)  # of one kind, and in front
    place += tl.sum(equal, 1)
    tl.store(rows + place, me * PIECE + at, kind >= 0)
    for e in tl.range(me, KINDS, pieces):
        mine = tl.sum(tl.where(bins == e, blocks, 0), 0)
        begin = tl.sum(tl.where(bins == e, first, 0), 0)
        done = begin * HEIGHT + tl.sum(tl.where(bins == e, total, 0), 0)
        for start in tl.range(0, mine, 32):
            block = start + tl.arange(0, 32)
            tl.store(owner + begin + block, tl.zeros([32], tl.int32) + e, block < mine)
        fill = done + tl.arange(0, triton.next_power_of_2(HEIGHT))
        tl.store(rows + fill, tl.zeros_like(fill) + choices, fill < (begin + mine) * HEIGHT)
    if me == pieces - 1:
        for start in tl.range(tl.sum(blocks, 0), most, PIECE):
            block = start + at
            tl.store(owner + block, tl.full([PIECE], -1, tl.int32), block < most)


@kernel
def _there(real, choices, k):
    """Choices of real tokens."""
    there = choices
    if real is not None:
        there = tl.minimum(tl.load(real) * k, choices)
    return there
