"""Which tokens of which requests run in the next step.

There are no phases: a request wants all its known but not computed tokens, one of them when it decodes. Every
step has one token budget. Decodes come first, then prefill chunks by rank, then requests that join. A chunk
ends where a pool of states wants a snapshot.
"""

from __future__ import annotations

import bisect
import heapq
from collections import deque
from dataclasses import dataclass

from irloom.runtime.pages import Pages
from irloom.runtime.request import FinishReason, Phase, Request

PATIENCE = 1000
"""One level of priority is worth this many steps of waiting, so nobody waits forever."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """``count`` tokens of ``request``, from its first token that is not computed."""

    request: Request
    count: int


class Scheduler:
    """First come, first served within a priority; a request may take pages only from those ranked behind it.

    So the request in front always runs, and each request gets to the front: its rank is fixed when it
    arrives and only finitely many others can come before it. The last in rank keeps its pages and waits a
    step when there is none for it; it loses them when another asks.
    """

    def __init__(self, pages: Pages, max_tokens: int) -> None:
        self.pages, self.max_tokens = pages, max_tokens
        self.running: list[Request] = []  # by rank
        self.waiting: list[tuple[tuple[int, int], Request]] = []  # a heap; those finished in it are skipped
        self.clock = 0
        self.arrivals = 0
        self.preemptions = 0
        self._plan: dict[Request, int] = {}
        self._left = max_tokens

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.arrivals += 1
        request.rank = (self.clock + request.priority * PATIENCE, self.arrivals)
        heapq.heappush(self.waiting, (request.rank, request))

    def schedule(self) -> list[Chunk]:
        """The next step: pages are taken for every chunk. Empty only when there is nothing to do."""
        self.clock += 1
        self._plan, self._left = {}, self.max_tokens
        decodes, prefills = deque[Request](), deque[Request]()
        for request in self.running:
            (decodes if request.known - request.computed == 1 else prefills).append(request)
        for request in (*decodes, *prefills):
            self._assign(request)
        self._admit()
        return [Chunk(request, count) for request, count in self._plan.items()]

    def complete(self, chunks: list[Chunk]) -> None:
        """The engine has stored these tokens."""
        for chunk in chunks:
            request = chunk.request
            assert request.table is not None
            request.computed += chunk.count
            self.pages.advance(request.table, chunk.count)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request wherever it is; its pages are free at once."""
        if request.phase is Phase.RUNNING:
            self._stop(request)
        request.phase, request.finish = Phase.FINISHED, reason

    def clear(self) -> None:
        """Forget all requests, wherever they are."""
        self.running.clear()
        self.waiting.clear()
        self._plan, self._left = {}, self.max_tokens

    def _assign(self, request: Request) -> None:
        """Give ``request`` what budget and pages allow, at the cost of those ranked behind it."""
        table = request.table
        if not self._left or table is None:  # no budget, or preempted in this step
            return
        want = min(request.known - request.computed, self._left, self.pages.uncut(table))
        if table.stored + want > table.limit:
            while not (room := self.pages.room(table)):
                if request is self.running[-1]:
                    return
                self._preempt(self.running[-1])
            want = min(want, room)
            self.pages.grow(table, want)
        self._plan[request] = want
        self._left -= want

    def _admit(self) -> None:
        """Let waiting requests join in order of rank; none overtakes the first.

        A newcomer behind all others must find pages for its whole prompt and a spare page for each that runs
        and may want one, or it would soon be preempted. One that outranks a running request just starts: it
        takes the pages as it needs them.
        """
        while self._left and (request := self._next()) is not None:
            outranks = bool(self.running) and request.rank < self.running[-1].rank
            if not self.pages.slots:
                if not outranks:
                    return
                self._preempt(self.running[-1])
            table = self.pages.open(request.prefix, request.known - 1)
            if self.running and not outranks and not self.pages.fits(table, request.known):
                self.pages.close(table)
                return
            heapq.heappop(self.waiting)
            request.table, request.computed, request.phase = table, table.stored, Phase.RUNNING
            request.cached = request.cached if request.preemptions else table.stored
            bisect.insort(self.running, request, key=lambda r: r.rank)
            self._assign(request)

    def _next(self) -> Request | None:
        while self.waiting and self.waiting[0][1].phase is not Phase.WAITING:
            heapq.heappop(self.waiting)
        return self.waiting[0][1] if self.waiting else None

    def _preempt(self, request: Request) -> None:
        """Take a running request's pages; it waits at its rank and computes its tokens again."""
        self._left += self._plan.pop(request, 0)
        self._stop(request)
        request.phase = Phase.WAITING
        request.preemptions += 1
        self.preemptions += 1
        heapq.heappush(self.waiting, (request.rank, request))

    def _stop(self, request: Request) -> None:
        assert request.table is not None
        self.running.remove(request)
        self.pages.close(request.table)
        request.table, request.computed = None, 0

    def check(self) -> None:
        """Every invariant of the queues, the plan and the pages under them."""
        self.pages.check()
        assert self.running == sorted(self.running, key=lambda r: r.rank), "running is out of order"
        assert sum(self._plan.values()) + self._left == self.max_tokens, "the budget is off"
        assert self._left >= 0, "the budget is overdrawn"
        held = {id(table) for table in self.pages.open_tables.values()}
        assert held == {id(r.table) for r in self.running}, "a table belongs to no running request"
        for request in self.running:
            assert request.phase is Phase.RUNNING, f"{request.id}: runs as {request.phase}"
            assert request.table is not None, f"{request.id}: runs without pages"
            assert request.table.stored == request.computed, f"{request.id}: lost count of its cache"
            assert request.computed < request.known, f"{request.id}: runs with nothing to do"
        for _, request in self.waiting:
            assert request.phase is not Phase.RUNNING, f"{request.id}: waits and runs"
            assert request.table is None, f"{request.id}: waits with pages"
            assert request.computed == 0, f"{request.id}: waits with computed tokens"
