"""A worker's side of the talk: one JSON object a line in, one a line out. Standard library only.

Every contender of a benchmark lives in a process of its own, so that none shares threads, allocator or
caches with another, and one that dies takes nobody with it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


@dataclass
class Answers:
    """What a contender did with requests that arrived together.

    ``seconds`` until the last token of all; ``first`` and ``last`` when the first request got its first and
    its last token, counted from the arrival; ``tokens`` per request.
    """

    seconds: float
    first: float
    last: float
    tokens: list[list[int]]


class Contender(Protocol):
    """Greedy answers of exactly ``new[i]`` tokens to ``prompts[i]``: token ids, none of which ends it."""

    def facts(self) -> dict[str, Any]:
        """``weight_bytes`` that a decode step reads; ``parameters`` if known; ``about``: its set-up."""
        ...

    def answer(self, prompts: list[list[int]], new: list[int]) -> Answers:
        """Serve all prompts, which arrive together."""
        ...


@dataclass
class Clock:
    """Notes when tokens come, in seconds since the requests arrived."""

    start: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list)

    def tick(self) -> None:
        self.times.append(time.perf_counter() - self.start)

    def answers(self, tokens: list[list[int]]) -> Answers:
        """Of one request whose tokens were ticked, or of several whose first one's were."""
        return Answers(time.perf_counter() - self.start, self.times[0], self.times[-1], tokens)


def contend(make: Callable[..., Contender]) -> None:
    """Serve ``load``, ``facts`` and ``answer``, and whatever else the contender calls ``serve_...``."""
    made: list[Contender] = []

    def load(**options: Any) -> dict[str, Any]:
        made.append(make(**options))
        return made[0].facts()

    def command(do: str, what: dict[str, Any]) -> dict[str, Any]:
        if do == "load":
            return load(**what)
        if do == "answer":
            return asdict(made[0].answer(**what))
        return getattr(made[0], f"serve_{do}")(**what)

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not land between answers
    for line in sys.stdin:
        what = json.loads(line)
        try:
            answer = command(what.pop("do"), what)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
