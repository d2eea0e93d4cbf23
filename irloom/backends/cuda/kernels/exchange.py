"""What a step begins and ends with: its arrays are put in their places, its tokens go to the host's memory.

There are rings of memory for a few steps: on the device, where a step's arrays have been copied while the one
before ran, and with the host, which the GPU writes by itself. So a graph is the same for every step. Whose
turn it is in the rings is counted on the device, by the steps that have run.
"""

from __future__ import annotations

import torch

from .mode import go_on, kernel, options, tl, triton, varying, wait

WORDS = 128
"""Entries of i32 that a program copies at a time."""
TABLE = 4
"""Words that say of a page table: where it starts, entries of a row, of these those in use, rows in use."""
READERS = 128
"""Programs that bring a page table, at most: what is in use of it may be far less than there is room for."""


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
    entries: int,
) -> None:
    """Fill ``block`` i32 [n] from the memory whose turn it is: ``posted`` i32 [steps, n].

    Of the first ``front`` entries all. ``tables`` page tables lie behind, of up to so many ``entries``; what
    is in use of them is said by the first words, ``TABLE`` of each, and is posted packed.
    Of ``tokens`` ids, which lie from ``ids`` on, the host did not know those with a number of 0 or more at
    ``late``: that row of ``chosen`` i32 [S] has been sampled by the step before; for a broken one any token
    is as good. ``turns`` i32 [2] has the turn of the next step, and gets that of this one.
    """
    readers = min(READERS, triton.cdiv(entries, WORDS)) if tables else 0
    grid = max(triton.cdiv(front, WORDS), readers), 1 + tables
    _arrive[grid](
        block, posted, turns, chosen, posted.stride(0), front, ids, late, tokens, readers, WORDS=WORDS,
        TABLE=TABLE, **options(num_warps=WORDS // 32),
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


@varying("stride", "front", "ids", "late", "tokens", "readers")
def _arrive(
    block, posted, turns, chosen, stride, front, ids, late, tokens, readers,
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
    elif part < readers:
        said = tl.load(at + (table - 1) * TABLE + tl.arange(0, TABLE), cache_modifier=".cg")
        start, width, used = _word(said, 0, TABLE), _word(said, 1, TABLE), _word(said, 2, TABLE)
        count = used * _word(said, 3, TABLE)
        for first in range(part * WORDS, count, readers * WORDS):
            i = first + each
            page = tl.load(at + start + i, mask=i < count, other=0, cache_modifier=".cg")
            tl.store(block + start + i // used * width + i % used, page, mask=i < count)
    _to_all(CHAIN)


@kernel
def _to_all(CHAIN: tl.constexpr):
    """What a program has written is there for kernels that do not wait, once it has ended."""
    if CHAIN:
        tl.inline_asm_elementwise(
            "fence.acq_rel.gpu; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )  # fmt: skip


@kernel
def _word(said, i, TABLE: tl.constexpr):
    """One of the words that were asked for together."""
    return tl.sum(tl.where(tl.arange(0, TABLE) == i, said, 0))


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
