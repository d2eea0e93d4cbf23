"""Which tokens of which requests run in the next step.

There are no phases: a request wants all its known but not stored tokens, one of them when it decodes. Every
step has one token budget. Decodes come first, then prefill chunks by rank, then requests that join. A chunk
ends where a pool of states wants a snapshot.

A token that a step still samples counts as known: the next step is scheduled while that one runs.
"""

from __future__ import annotations

import bisect
import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from irloom.runtime.core import Ints
from irloom.runtime.pages import Pages
from irloom.runtime.request import FinishReason, Phase, Request
from irloom.runtime.sequences import Sequences, Slots

PATIENCE = 1000
"""One level of priority is worth this many steps of waiting, so nobody waits forever."""
RECOVERY = 256
"""Steps after which they may be twice as large again, where they had to be smaller."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """What runs in a step: ``counts[i]`` tokens of the request in ``slots[i]``, from its first not stored.

    ``samples[i]``: they reach the end of what is known. ``serials`` and ``requests`` say whose the slots are
    in this step.
    """

    slots: Slots
    counts: Ints
    samples: NDArray[np.bool_]
    serials: NDArray[np.int64]
    requests: list[Request]

    def __len__(self) -> int:
        return len(self.slots)


class Scheduler:
    """First come, first served within a priority; a request may take pages only from those ranked behind it.

    So the request in front always runs, and each request gets to the front: its rank is fixed when it
    arrives and only finitely many others can come before it. The last in rank keeps its pages and waits a
    step when there is none for it; it loses them when another asks.

    Steps have up to ``max_tokens``, fewer for a while after one that the engine had no memory for: that is
    ``budget``, and no more requests run than it has tokens.

    A step's plan is the slots ``_ready``, which decode a token that they have a page for, and ``_plan`` for
    all others.
    """

    def __init__(self, pages: Pages, max_tokens: int) -> None:
        self.pages, self.max_tokens, self.budget = pages, max_tokens, max_tokens
        self.sequences = Sequences(pages.max_slots, pages.capacity + 1)
        self.running: list[Request] = []  # by rank
        self.waiting: list[tuple[tuple[int, int], Request]] = []  # a heap; those finished in it are skipped
        self.clock = 0
        self.arrivals = 0
        self.preemptions = 0
        self._plan: dict[Request, int] = {}
        self._ready: Slots = np.zeros(0, np.intp)
        self._left = max_tokens
        self._shrunk = 0  # the clock when the budget was last changed
        self._by_rank: Slots | None = None

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.arrivals += 1
        request.rank = (self.clock + request.priority * PATIENCE, self.arrivals)
        heapq.heappush(self.waiting, (request.rank, request))

    def schedule(self) -> Chunks:
        """The next step: pages are taken for every chunk. Empty when there is nothing to do but wait."""
        self.clock += 1
        if self.budget < self.max_tokens and self.clock - self._shrunk >= RECOVERY:
            self.budget, self._shrunk = min(2 * self.budget, self.max_tokens), self.clock
        slots = self._slots()
        stored = self.pages.stored[slots]
        wants = self.sequences.wants(slots, stored)
        decode, has_page = wants == 1, stored < self.pages.limit[slots]
        self._ready = slots[decode & has_page]
        self._plan, self._left = {}, self.budget - len(self._ready)
        others = np.concatenate([slots[decode & ~has_page], slots[wants > 1]])
        for request in self.sequences.requests[others].tolist():
            self._assign(request)
        self._admit()
        return self._chunks()

    def complete(self, chunks: Chunks) -> None:
        """The step stores these tokens, and samples; of requests that have left since, nothing."""
        here = self.sequences.serial[chunks.slots] == chunks.serials
        self.pages.advance(chunks.slots[here], chunks.counts[here])
        rows = np.flatnonzero(here & chunks.samples)
        self.sequences.promise(chunks.slots[rows], rows)

    def shed(self, chunks: Chunks) -> bool:
        """The engine had no memory for a step of these: the next ones are half as large, at most.

        The last in rank are preempted for that, and whoever may have half a step in its state. False, and
        nothing is changed, where a step cannot be smaller.
        """
        size = min(int(chunks.counts.sum()), self.budget)
        if size <= 1:
            return False
        self.budget, self._shrunk = size // 2, self.clock
        self._forget_plan()
        if any(pool.cut for pool in self.pages.specs):
            for request in chunks.requests:
                if request.phase is Phase.RUNNING:
                    self._preempt(request)
        while len(self.running) > self.budget:
            self._preempt(self.running[-1])
        return True

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request wherever it is; its pages are free at once."""
        if request.phase is Phase.RUNNING:
            self._stop(request)
        request.phase, request.finish = Phase.FINISHED, reason

    def clear(self) -> None:
        """Forget all requests, wherever they are."""
        for request in self.running:
            assert request.table is not None
            self.sequences.leave(request.table.slot)
        self.running.clear()
        self.waiting.clear()
        self._forget_plan()

    def _slots(self) -> Slots:
        """Of those that run, by rank."""
        if self._by_rank is None:
            self._by_rank = np.array([r.table.slot for r in self.running if r.table is not None], np.intp)
        return self._by_rank

    def _chunks(self) -> Chunks:
        planned = [r.table.slot for r in self._plan if r.table is not None]
        slots = np.concatenate([self._ready, np.array(planned, np.intp)])
        counts = np.ones(len(slots), np.int32)
        counts[len(self._ready) :] = list(self._plan.values())
        sequences = self.sequences
        samples = self.pages.stored[slots] + counts == sequences.promised[slots]
        return Chunks(slots, counts, samples, sequences.serial[slots], sequences.requests[slots].tolist())

    def _assign(self, request: Request) -> None:
        """Give ``request`` what budget and pages allow, at the cost of those ranked behind it."""
        table = request.table
        if not self._left or table is None:  # no budget, or preempted in this step
            return
        stored = table.stored
        want = int(self.sequences.promised[table.slot]) - stored
        want = min(want, self._left, self.pages.uncut(table))
        if stored + want > table.limit:
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
        takes the pages as it needs them. One that awaits a token of a running step waits for it.
        """
        while self._left and (request := self._next()) is not None and not request.awaiting:
            outranks = bool(self.running) and request.rank < self.running[-1].rank
            if not self.pages.slots or len(self.running) >= self.budget:
                if not outranks:
                    return
                self._preempt(self.running[-1])
            table = self.pages.open(request.prefix, request.known - 1)
            if self.running and not outranks and not self.pages.fits(table, request.known):
                self.pages.close(table)
                return
            heapq.heappop(self.waiting)
            request.table, request.phase = table, Phase.RUNNING
            request.cached = request.cached if request.preemptions else table.hit
            self.sequences.enter(table.slot, request)
            bisect.insort(self.running, request, key=lambda r: r.rank)
            self._by_rank = None
            self._assign(request)

    def _next(self) -> Request | None:
        while self.waiting and self.waiting[0][1].phase is not Phase.WAITING:
            heapq.heappop(self.waiting)
        return self.waiting[0][1] if self.waiting else None

    def _preempt(self, request: Request) -> None:
        """Take a running request's pages; it waits at its rank and computes its tokens again."""
        assert request.table is not None
        ready = self._ready != request.table.slot
        self._left += self._plan.pop(request, 0) + len(ready) - int(np.count_nonzero(ready))
        self._ready = self._ready[ready]
        self._stop(request)
        request.phase = Phase.WAITING
        request.preemptions += 1
        self.preemptions += 1
        heapq.heappush(self.waiting, (request.rank, request))

    def _stop(self, request: Request) -> None:
        assert request.table is not None
        self.running.remove(request)
        self.sequences.leave(request.table.slot)
        self.pages.close(request.table)
        request.table, self._by_rank = None, None

    def _forget_plan(self) -> None:
        self._plan, self._ready, self._left = {}, self._ready[:0], self.budget
        self._by_rank = None

    def check(self) -> None:
        """Every invariant of the queues, the plan and the pages under them."""
        self.pages.check()
        self.sequences.check(self.running)
        assert self.running == sorted(self.running, key=lambda r: r.rank), "running is out of order"
        planned = sum(self._plan.values()) + len(self._ready)
        assert planned + self._left == self.budget <= self.max_tokens, "the budget is off"
        assert len(self.running) <= self.budget, "more run than a step has tokens"
        assert self._left >= 0, "the budget is overdrawn"
        held = {id(table) for table in self.pages.open_tables.values()}
        assert held == {id(r.table) for r in self.running}, "a table belongs to no running request"
        for request in self.running:
            assert request.phase is Phase.RUNNING, f"{request.id}: runs as {request.phase}"
            assert request.table is not None, f"{request.id}: runs without pages"
            slot = request.table.slot
            assert self.sequences.requests[slot] is request, f"{request.id}: another one is in its slot"
            assert request.table.stored < self.sequences.promised[slot], f"{request.id}: has nothing to do"
        for _, request in self.waiting:
            assert request.phase is not Phase.RUNNING, f"{request.id}: waits and runs"
            assert request.table is None, f"{request.id}: waits with pages"
