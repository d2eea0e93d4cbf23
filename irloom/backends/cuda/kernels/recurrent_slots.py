"""Where the states of a step's sequences lie: what every recurrent kernel begins with.

A sequence starts from the slot that holds its state before the step, or from zeros, and leaves its state in
another slot or in the same one. So whoever reads part of a state is who writes that part, and has read all of
it before.
"""

from __future__ import annotations

from typing import Any

from irloom.backends.cuda.step import Step
from irloom.ir.seqs import StateCache

from .mode import kernel, tl


def places(cache: StateCache, step: Step) -> tuple[Any, ...]:
    """What kernels take of a cache: ``states, starts, context, table``, and the width of the table's rows."""
    table = step.tables[cache.pool]
    return cache.states, step.starts, step.context, table, table.stride(0)


def slots(cache: StateCache) -> dict[str, int]:
    """What they are compiled for: how far slots are apart, in entries, and of how many tokens one is."""
    return {"SLOT": cache.states.stride(0), "EVERY": cache.every}


@kernel
def span(starts, context, table, width, s, EVERY: tl.constexpr):
    """Sequence ``s``: its first row, the one behind its last, the slots before (-1: zeros) and after."""
    a = tl.load(starts + s)
    b = tl.load(starts + s + 1)
    seen = tl.load(context + s)
    past = seen - (b - a)
    row = table + s * width
    before = tl.load(row + (past - 1) // EVERY, mask=past > 0, other=-1)
    after = tl.load(row + (seen - 1) // EVERY, mask=b > a, other=0)
    return a, b, before.to(tl.int64), after.to(tl.int64)


@kernel
def block_of(starts, seqs, block, BT: tl.constexpr):
    """Which sequence a block of up to ``BT`` rows belongs to, and the number it has there.

    The blocks of sequence ``s`` begin at ``starts[s] // BT + s``, so that ``tokens // BT + seqs`` suffice
    for any lengths; some have no rows.
    """
    low = block * 0
    high = low + seqs
    while high - low > 1:
        middle = (low + high) // 2
        reached = tl.load(starts + middle) // BT + middle <= block
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle)
    return low, block - (tl.load(starts + low) // BT + low)
