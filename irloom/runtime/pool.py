"""One pool of pages: which are blank, which are in use and by how many, which may be hit again."""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict

from irloom.ir.plan import Pool


class PagePool:
    """Reference-counted pages of one ``Pool``.

    A page is *blank* (nothing in it), *in use* (``refs > 0``) or *idle*: nobody holds it, but it still has
    the keys and values of a published prefix. Idle pages are taken back least recently used first, and only
    once no page is blank.
    """

    def __init__(self, spec: Pool) -> None:
        self.spec = spec
        self.refs = [0] * spec.pages
        self.blank = list(range(spec.pages))  # a heap: the first go first, so those in use lie close together
        self.idle: OrderedDict[int, None] = OrderedDict()
        self.keys: list[bytes | None] = [None] * spec.pages
        self.published: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """Pages that ``take`` can hand out now."""
        return len(self.blank) + len(self.idle)

    @property
    def in_use(self) -> int:
        return self.spec.pages - self.available

    def take(self) -> int:
        """A page for one writer; evicts the least recently used idle page when none is blank."""
        if self.blank:
            page = heapq.heappop(self.blank)
        else:
            page, _ = self.idle.popitem(last=False)
            key = self.keys[page]
            assert key is not None
            del self.published[key]
            self.keys[page] = None
        self.refs[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more reader of a published page."""
        if not self.refs[page]:
            del self.idle[page]
        self.refs[page] += 1

    def release(self, page: int) -> None:
        """One holder less; the last one leaves the page idle when it is published, else blank."""
        self.refs[page] -= 1
        if self.refs[page]:
            return
        if self.keys[page] is None:
            heapq.heappush(self.blank, page)
        else:
            self.idle[page] = None

    def publish(self, page: int, key: bytes) -> None:
        """Let later requests find a full page. Where ``key`` is published, this copy stays private."""
        if self.keys[page] is None and key not in self.published:
            self.keys[page] = key
            self.published[key] = page

    def withdraw(self, page: int) -> None:
        """Let nobody find a page any more."""
        if (key := self.keys[page]) is None:
            return
        del self.published[key]
        self.keys[page] = None
        if not self.refs[page]:
            del self.idle[page]
            heapq.heappush(self.blank, page)

    def check(self, held: Counter[int]) -> None:
        """Every invariant of the pool, given how many page tables hold each page."""
        name, blank, idle = self.spec.name, set(self.blank), set(self.idle)
        assert len(blank) == len(self.blank), f"{name}: a page is blank twice"
        for page, refs in enumerate(self.refs):
            assert refs == held[page], f"{name}: {held[page]} tables hold page {page}, references: {refs}"
            states = (page in blank) + (page in idle) + (refs > 0)
            assert states == 1, f"{name}: page {page} is in {states} of blank, idle, in use"
            key = self.keys[page]
            assert key is None or self.published.get(key) == page, f"{name}: page {page} lost its key"
            assert page not in blank or key is None, f"{name}: page {page} is blank but published"
            assert page not in idle or key is not None, f"{name}: page {page} is idle but cannot be found"
        keyed = sum(key is not None for key in self.keys)
        assert len(self.published) == keyed, f"{name}: a key without a page"
        assert set(held) <= set(range(self.spec.pages)), f"{name}: a table holds a page that does not exist"
