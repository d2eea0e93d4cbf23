"""What a step begins and ends with: its arrays come from the host's memory, its tokens go there.

The host has a ring of memory for a few steps, which the GPU reads and writes by itself: so copies are a part
of a step's graph. Whose turn it is in the ring is counted on the device, by the steps that have run.
"""

from __future__ import annotations

import torch

from .mode import go_on, options, tl, triton, varying, wait

WORDS = 256
"""Entries of i32 that a program copies at a time, each by a thread of its own: so none is asked for twice."""
TABLE = 4
"""Words that say of a page table: where it starts, entries of a row, of these those in use, rows in use."""


def arrive(
    block: torch.Tensor,
    posted: torch.Tensor,
    turns: torch.Tensor,
    chosen: torch.Tensor,
    *,
    front: int,
    ids: int,
    late: int,
    tokens: int,
    tables: int,
    seqs: int,
) -> None:
    """Fill ``block`` i32 [n] from the memory of the host whose turn it is: ``posted`` i32 [steps, n].

    Of the first ``front`` entries all. ``tables`` page tables lie behind, of up to ``seqs`` rows; what is in
    use of them is said by the first words, ``TABLE`` of each. Of ``tokens`` ids, which lie from ``ids`` on,
    the host did not know those with a number of 0 or more at ``late``: that row of ``chosen`` i32 [S] has
    been sampled by the step before; for a broken one any token is as good. ``turns`` i32 [2] has the turn of
    the next step, and gets that of this one.
    """
    grid = max(triton.cdiv(front, WORDS), seqs if tables else 0), 1 + tables
    _arrive[grid](
        block, posted, turns, chosen, posted.stride(0), front, ids, late, tokens, WORDS=WORDS, TABLE=TABLE,
        **options(num_warps=WORDS // 32),
    )  # fmt: skip


def leave(told: torch.Tensor, turns: torch.Tensor, chosen: torch.Tensor) -> None:
    """Tell the host ``chosen`` i32 [S], in the memory whose turn it is: a row of ``told`` i32 [steps, most].

    Then it is the next one's turn: ``turns`` as for ``arrive``.
    """
    grid = (triton.cdiv(len(chosen), WORDS),)
    _leave[grid](
        told, turns, chosen, told.stride(0), len(chosen), STEPS=len(told), WORDS=WORDS,
        **options(num_warps=WORDS // 32),
    )  # fmt: skip


@varying("stride", "front", "ids", "late", "tokens")
def _arrive(
    block, posted, turns, chosen, stride, front, ids, late, tokens,
    WORDS: tl.constexpr, TABLE: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """It lets no kernel start before it has ended: some read page tables before they wait."""
    part, table, each = tl.program_id(0), tl.program_id(1), tl.arange(0, WORDS)
    wait(CHAIN)
    turn = tl.load(turns)
    at = posted + turn * stride
    if table == 0:
        if part == 0:
            tl.store(turns + 1, turn)
        i = part * WORDS + each
        word = tl.load(at + i, mask=i < front, other=0, cache_modifier=".cg")
        is_id = (i >= ids) & (i < ids + tokens)
        row = tl.load(at + late - ids + i, mask=is_id, other=-1, cache_modifier=".cg")
        token = tl.load(chosen + row, mask=row >= 0, other=0)
        tl.store(block + i, tl.where(row >= 0, tl.maximum(token, 0), word), mask=i < front)
    else:
        of = at + (table - 1) * TABLE
        start, width = tl.load(of, cache_modifier=".cg"), tl.load(of + 1, cache_modifier=".cg")
        used, rows = tl.load(of + 2, cache_modifier=".cg"), tl.load(of + 3, cache_modifier=".cg")
        if part < rows:
            row = start + part * width
            for first in range(0, used, WORDS):
                i = first + each
                page = tl.load(at + row + i, mask=i < used, other=0, cache_modifier=".cg")
                tl.store(block + row + i, page, mask=i < used)


@varying("stride", "count")
def _leave(told, turns, chosen, stride, count, STEPS: tl.constexpr, WORDS: tl.constexpr, CHAIN: tl.constexpr):
    part = tl.program_id(0)
    wait(CHAIN)
    go_on(CHAIN)
    turn = tl.load(turns + 1)
    if part == 0:
        tl.store(turns, (turn + 1) % STEPS)
    i = part * WORDS + tl.arange(0, WORDS)
    tl.store(told + turn * stride + i, tl.load(chosen + i, mask=i < count, other=0), mask=i < count)
