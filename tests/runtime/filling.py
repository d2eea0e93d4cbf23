"""Pages filled as the scheduler fills them, checked after every step."""

from __future__ import annotations

import numpy as np

from irloom.runtime.pages import Pages, PageTable, Prefix

TOKENS = np.arange(100, dtype=np.int32)


def fill(
    pages: Pages, length: int, chunk: int = 100, tokens: np.ndarray = TOKENS, salt: str = ""
) -> PageTable:
    """A sequence of ``length`` tokens, stored ``chunk`` tokens a step, or as many as a pool lets pass."""
    table = pages.open(Prefix(tokens, pages.unit, salt), length - 1)
    while table.stored < length:
        count = min(chunk, length - table.stored, pages.uncut(table))
        assert pages.room(table) >= count
        pages.grow(table, count)
        pages.check()
        pages.advance([table.slot], [count])
        pages.check()
    return table


def hit(pages: Pages, limit: int, tokens: np.ndarray = TOKENS) -> int:
    return pages.hit(Prefix(tokens, pages.unit), limit)
