"""What every step changes of the requests that run, in arrays: a step of a thousand decodes is a few of them.

Python objects are looked at when a request comes or goes, when it needs a page, and when somebody reads its
text as it grows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from irloom.runtime.core import DRAW, Ints, SamplingRow, draw_of
from irloom.runtime.request import Request

Slots = NDArray[np.intp]
"""Numbers of slots."""


class Sequences:
    """Arrays with an entry per slot of the page tables; a slot that is free has ``serial`` 0.

    ``tokens`` [slots, longest] has the first ``known`` of each; ``promised`` counts one more while a step
    samples it, for its sequence ``row``. There is room for ``end`` tokens, of which the last is never stored.
    ``draw`` says how to choose a token, but for ``special`` ones, and those of fewer than ``free`` tokens,
    which may not stop yet. ``followed`` ones have their tokens looked at one by one.
    """

    def __init__(self, slots: int, longest: int) -> None:
        self.tokens: Ints = np.empty((slots, longest), np.int32)  # memory is given to what is written
        self.known, self.promised, self.row, self.end, self.prompt, self.free = np.zeros((6, slots), np.int32)
        self.draw = np.zeros(slots, DRAW)
        self.special, self.followed, self.penalized = np.zeros((3, slots), np.bool_)
        self.serial = np.zeros(slots, np.int64)
        self.requests = np.full(slots, None, object)
        self._serials = 0

    def enter(self, slot: int, request: Request) -> None:
        """A request takes a slot; its tokens are kept here from now on."""
        params, count = request.params, request.known
        self._serials += 1
        self.serial[slot], self.requests[slot] = self._serials, request
        self.known[slot] = self.promised[slot] = count
        self.end[slot], self.prompt[slot] = request.end, request.prompt_length
        self.free[slot] = request.prompt_length + params.min_tokens if request.stop_ids else 0
        self.draw[slot] = draw_of(SamplingRow(params, request.seed, 0))
        self.penalized[slot] = params.penalized
        self.special[slot] = params.penalized or bool(params.logit_bias) or params.logprobs is not None
        self.followed[slot] = request.followed
        row = self.tokens[slot, : request.end]
        row[:count] = request.tokens[:count]
        request.hold(row, count)

    def leave(self, slot: int) -> None:
        """The request in ``slot`` goes, with its tokens; it is ``awaiting`` if a step samples one more."""
        request, count = self.requests[slot], int(self.known[slot])
        request.awaiting = bool(self.promised[slot] > count)
        request.hold(self.tokens[slot, :count].copy(), count)
        self.serial[slot], self.requests[slot] = 0, None

    def wants(self, slots: Slots, stored: Ints) -> Ints:
        """How many tokens of each could go into a step, when ``stored`` have."""
        return np.minimum(self.promised[slots], self.end[slots] - 1) - stored

    def promise(self, slots: Slots, rows: Slots) -> None:
        """A step samples a token of each, for its sequences ``rows``."""
        self.promised[slots] += 1
        self.row[slots] = rows

    def append(self, slots: Slots, tokens: Ints) -> None:
        """Tokens that were sampled."""
        self.tokens[slots, self.known[slots]] = tokens
        self.known[slots] += 1

    def check(self, running: list[Request]) -> None:
        """Every invariant of the arrays."""
        assert set(self.requests[self.serial > 0]) == set(running), "a slot has another request"
        for slot in np.flatnonzero(self.serial).tolist():
            request, known, promised = self.requests[slot], int(self.known[slot]), int(self.promised[slot])
            assert known <= promised <= known + 1, f"{request.id}: {promised} tokens of {known} are promised"
            assert request.prompt_length <= known < self.end[slot], f"{request.id}: {known} tokens"
            assert request.tokens.base is self.tokens, f"{request.id}: runs with tokens of its own"
