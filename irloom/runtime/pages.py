"""Paged keys and values: page tables of the running requests, and the prefixes they share.

A prefix is named by a chain of salted SHA-256 digests, so a page can be found by what is in it: its tokens
and every token before them. A hit of ``n`` tokens needs, in a pool without a window, all pages of those
tokens; in a pool with one, only the pages that the token at position ``n`` still reads. In a pool of states
that is one page: the snapshot that ends with those tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from irloom.ir.plan import Pool
from irloom.runtime.pool import PagePool

Ints = NDArray[np.int32]


class Prefix:
    """Digests of the prefixes of a growing token array, one every ``unit`` tokens.

    ``digests[i]`` covers the salt and the first ``(i + 1) * unit`` tokens. Requests with different salts
    never share a page.
    """

    def __init__(self, tokens: NDArray[np.int32], unit: int, salt: str = "") -> None:
        self.tokens, self.unit = tokens, unit
        self.root = hashlib.sha256(b"irloom prefix " + salt.encode()).digest()
        self.digests: list[bytes] = []

    def reach(self, length: int) -> None:
        """Extend the chain over the first ``length`` tokens, whole units only."""
        digests, unit = self.digests, self.unit
        for i in range(len(digests), length // unit):
            parent = digests[-1] if digests else self.root
            digests.append(hashlib.sha256(parent + self.tokens[i * unit : (i + 1) * unit].tobytes()).digest())

    def key(self, index: int, page: int) -> bytes:
        """What names page ``index`` of a pool with ``page`` tokens a page."""
        return self.digests[(index + 1) * page // self.unit - 1]


@dataclass(frozen=True, slots=True, eq=False)
class PageTable:
    """The pages that one running request holds: row ``slot`` of every table of ``pages``.

    It began with ``hit`` tokens of a cached prefix.
    """

    pages: Pages
    slot: int
    prefix: Prefix
    hit: int

    @property
    def stored(self) -> int:
        """Tokens that have keys and values there."""
        return int(self.pages.stored[self.slot])

    @property
    def limit(self) -> int:
        """Tokens that would fit without another page."""
        return int(self.pages.limit[self.slot])

    @property
    def first(self) -> list[int]:
        """For each pool its first page: all before are -1."""
        return self.pages.first[:, self.slot].tolist()

    @property
    def last(self) -> list[int]:
        """For each pool the one behind its last page: it and all after are -1."""
        return self.pages.last[:, self.slot].tolist()


class Pages:
    """All pools, and the page tables of up to ``slots`` running requests.

    ``tables[i]`` is i32 ``[slots, pages of max_context]``; its entries ``first[i]`` to ``last[i] - 1`` are
    pages, all others -1. ``stored`` and ``limit`` [slots] count the tokens of a slot that have keys and
    values, and those that would fit without another page. ``capacity`` is how many tokens a request can store
    when it is alone.
    """

    def __init__(self, pools: tuple[Pool, ...], slots: int, max_context: int) -> None:
        self.specs, self.max_slots, self.max_context = pools, slots, max_context
        self.unit = math.gcd(*(pool.page for pool in pools))
        self.granule = math.lcm(*(pool.page for pool in pools))
        self.cuts = tuple(pool.page for pool in pools if pool.cut)
        self.capacity = max_context
        for pool in pools:
            if pool.window is None or pool.pages < live_pages(pool):
                self.capacity = min(self.capacity, pool.pages * pool.page)
        self.reset()

    def reset(self) -> None:
        """Forget every table and every cached prefix."""
        self.pools = tuple(PagePool(pool) for pool in self.specs)
        self.tables = tuple(
            np.full((self.max_slots, -(-self.max_context // pool.page)), -1, np.int32) for pool in self.specs
        )
        self.stored, self.limit = np.zeros((2, self.max_slots), np.int32)
        self.first, self.last = np.zeros((2, len(self.specs), self.max_slots), np.int32)
        self.slots = list(range(self.max_slots - 1, -1, -1))
        self.open_tables: dict[int, PageTable] = {}

    @property
    def in_use(self) -> int:
        """Pages that some request holds."""
        return sum(pool.in_use for pool in self.pools)

    # a request's life: open, then grow and advance every step, then close

    def open(self, prefix: Prefix, limit: int) -> PageTable:
        """A table that starts with the longest cached prefix of up to ``limit`` tokens; needs a free slot."""
        hit = self.hit(prefix, limit)
        table = PageTable(self, self.slots.pop(), prefix, hit)
        slot = table.slot
        for i, (pool, rows) in enumerate(zip(self.pools, self.tables, strict=True)):
            first, last = first_page(pool.spec, hit), hit // pool.spec.page
            for index in range(first, last):
                page = pool.published[prefix.key(index, pool.spec.page)]
                pool.share(page)
                rows[slot, index] = page
            self.first[i, slot], self.last[i, slot] = first, last
        self.stored[slot] = self.limit[slot] = hit
        self.open_tables[slot] = table
        return table

    def uncut(self, table: PageTable) -> int:
        """How many more tokens one chunk may bring: none crosses a multiple of the page of a cut pool."""
        return min((page - table.stored % page for page in self.cuts), default=self.max_context)

    def room(self, table: PageTable) -> int:
        """How many more tokens could be stored now."""
        pools = zip(self.pools, table.last, strict=True)
        return min((last + pool.available) * pool.spec.page for pool, last in pools) - table.stored

    def fits(self, table: PageTable, length: int) -> bool:
        """Whether ``length`` tokens fit now, with a spare page for each other table that may want one."""
        for i, (pool, first, last) in enumerate(zip(self.pools, table.first, table.last, strict=True)):
            need = -(-length // pool.spec.page) - last
            if pool.spec.window is not None:
                need = min(need, max(live_pages(pool.spec) - (last - first), 1))
            if need + self._growing(i, table) > pool.available:
                return False
        return True

    def _growing(self, i: int, but: PageTable) -> int:
        """Other tables whose pages of pool ``i`` end before the longest sequence does."""
        growing = self.last[i] * self.specs[i].page < self.max_context
        growing[[*self.slots, but.slot]] = False
        return int(np.count_nonzero(growing))

    def grow(self, table: PageTable, count: int) -> None:
        """Take the pages for ``count`` more tokens, a chunk that is ``uncut``; there must be ``room``."""
        length = table.stored + count
        if length <= table.limit:
            return
        slot = table.slot
        for i, (pool, rows) in enumerate(zip(self.pools, self.tables, strict=True)):
            last, need = int(self.last[i, slot]), -(-length // pool.spec.page)
            for index in range(last, need):
                rows[slot, index] = pool.take()
            self.last[i, slot] = max(last, need)
        self.limit[slot] = min(last * spec.page for last, spec in zip(table.last, self.specs, strict=True))

    def advance(self, slots: Sequence[int] | NDArray[np.intp], counts: Sequence[int] | Ints) -> None:
        """``counts`` more tokens of ``slots`` are stored: publish full pages, drop those behind a window."""
        slots = np.asarray(slots, np.intp)
        before = self.stored[slots]
        after = before + np.asarray(counts, np.int32)
        self.stored[slots] = after
        for at in np.flatnonzero(after // self.unit > before // self.unit).tolist():
            self._publish(self.open_tables[int(slots[at])], int(before[at]))
        for i, spec in enumerate(self.specs):
            if spec.window is None:
                continue
            first = np.maximum(after - spec.window + 1, 0) // spec.page
            for at in np.flatnonzero(first > self.first[i, slots]).tolist():
                slot = int(slots[at])
                self._release(self.open_tables[slot], i, int(self.first[i, slot]), int(first[at]))
                self.first[i, slot] = first[at]

    def close(self, table: PageTable) -> None:
        """Give back all pages; what was published stays findable until its page is needed."""
        for i in range(len(self.pools)):
            self._release(table, i, int(self.first[i, table.slot]), int(self.last[i, table.slot]))
        del self.open_tables[table.slot]
        self.slots.append(table.slot)

    def withdraw(self, table: PageTable | None = None) -> None:
        """Let nobody share the pages of ``table`` any more, or any page: what is in them is not trusted."""
        for pool, rows in zip(self.pools, self.tables, strict=True):
            pages = list(pool.published.values()) if table is None else rows[table.slot].tolist()
            for page in pages:
                if page >= 0:
                    pool.withdraw(page)

    def _publish(self, table: PageTable, before: int) -> None:
        table.prefix.reach(table.stored)
        for pool, rows in zip(self.pools, self.tables, strict=True):
            size = pool.spec.page
            for index in range(before // size, table.stored // size):
                pool.publish(int(rows[table.slot, index]), table.prefix.key(index, size))

    def _release(self, table: PageTable, i: int, start: int, stop: int) -> None:
        """The end of a sequence goes first: its beginning is likelier to be asked for again."""
        row = self.tables[i][table.slot, start:stop]
        for page in reversed(row.tolist()):
            self.pools[i].release(page)
        row[:] = -1

    # finding prefixes

    def hit(self, prefix: Prefix, limit: int) -> int:
        """Tokens of the longest cached prefix that every pool can continue from, at most ``limit``."""
        length = limit // self.granule * self.granule
        prefix.reach(length)
        for pool in self.pools:
            if pool.spec.window is None:
                length = self._whole(self._longest(pool, prefix, length))
        windowed = [pool for pool in self.pools if pool.spec.window is not None]
        while True:
            usable = min((self._miss(pool, prefix, length) for pool in windowed), default=length)
            if usable == length:
                return length
            length = self._whole(usable)

    def _whole(self, length: int) -> int:
        return length // self.granule * self.granule

    def _longest(self, pool: PagePool, prefix: Prefix, length: int) -> int:
        size = pool.spec.page
        for index in range(length // size):
            if prefix.key(index, size) not in pool.published:
                return index * size
        return length

    def _miss(self, pool: PagePool, prefix: Prefix, length: int) -> int:
        """``length`` if the window before it is cached, else the longest prefix without the missing page."""
        size = pool.spec.page
        for index in range(length // size - 1, first_page(pool.spec, length) - 1, -1):
            if prefix.key(index, size) not in pool.published:
                return index * size
        return length

    def check(self) -> None:
        """Every invariant of tables and pools."""
        slots = sorted([*self.slots, *self.open_tables])
        assert slots == list(range(self.max_slots)), "a slot is lost or doubled"
        for i, (pool, rows) in enumerate(zip(self.pools, self.tables, strict=True)):
            pool.check(Counter(rows[rows >= 0].tolist()))
            assert (rows[self.slots] == -1).all(), f"{pool.spec.name}: a free slot holds pages"
            for slot, table in self.open_tables.items():
                self._check_row(pool, rows[slot], table, i)

    def _check_row(self, pool: PagePool, row: NDArray[np.int32], table: PageTable, i: int) -> None:
        where, size = f"{pool.spec.name}, slot {table.slot}", pool.spec.page
        first, last = table.first[i], table.last[i]
        assert first == first_page(pool.spec, table.stored), f"{where}: pages behind the window are kept"
        assert last * size >= table.limit >= table.stored, f"{where}: tokens are stored without pages"
        assert not pool.spec.cut or last - first <= 2, f"{where}: {last - first} pages are held"
        assert (row[first:last] >= 0).all(), f"{where}: one of pages {first} to {last - 1} is missing"
        assert (row[:first] == -1).all(), f"{where}: a page before {first} is held"
        assert (row[last:] == -1).all(), f"{where}: a page after {last - 1} is held"
        for index in range(table.stored // size, last):
            page = int(row[index])
            assert pool.refs[page] == 1, f"{where}: page {page} is shared and will be written"
            assert pool.keys[page] is None, f"{where}: page {page} is published and will be written"


def first_page(pool: Pool, stored: int) -> int:
    """The first page that a token at position ``stored`` still reads."""
    return 0 if pool.window is None else max(0, stored - pool.window + 1) // pool.page


def live_pages(pool: Pool) -> int:
    """The most pages that one token reads in a pool with a window, its own included."""
    assert pool.window is not None
    return -(-(pool.window - 1) // pool.page) + 1
