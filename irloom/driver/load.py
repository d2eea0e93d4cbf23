"""Requests to measure with, and what comes back of them: the same for irloom and for every peer."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Load:
    """One request alone and ``requests`` together, each of random token ids, answered greedily in full.

    Every run has prompts of its own, so that no prefix is found in a cache; whoever has the same vocabulary
    gets the same ones. At most ``seqs`` are served at once, by everybody (None: all, but at most 1024).
    """

    requests: int = 16
    prompt_tokens: int = 512
    new_tokens: int = 64
    repeats: int = 3
    seqs: int | None = None
    seed: int = 0

    @property
    def longest(self) -> int:
        """Tokens of a sequence at its end."""
        return self.prompt_tokens + self.new_tokens

    @property
    def at_once(self) -> int:
        """Sequences that are served at once."""
        return min(self.requests, self.seqs or 1024)

    def prompts(self, requests: int, vocab: int, run: int) -> list[list[int]]:
        """Those of one run.

        >>> load = Load(prompt_tokens=3)
        >>> load.prompts(2, 1000, run=0) == load.prompts(2, 1000, run=0) != load.prompts(2, 1000, run=1)
        True
        """
        draw, ids = random.Random(f"{self.seed} {requests} {run}"), range(vocab)
        return [draw.choices(ids, k=self.prompt_tokens) for _ in range(requests)]


@dataclass(frozen=True)
class Answer:
    """What serving requests took: ``seconds`` until the last token, and ``joules`` where the driver tells.

    ``times`` has for each request when each token came, in seconds since all arrived; of an answer that was
    not streamed they are empty.
    """

    seconds: float
    times: list[list[float]] = field(default_factory=list[list[float]])
    joules: float | None = None


class Contender(Protocol):
    """Whoever answers: irloom in this process, a peer in its own. ``about`` says what, with its version."""

    @property
    def about(self) -> str: ...
    @property
    def vocab(self) -> int: ...

    def answer(self, prompts: list[list[int]], new: int, stream: bool) -> Answer:
        """Serve ``prompts``, which arrive together, with exactly ``new`` tokens each.

        With ``stream`` every token is seen as it comes; without, the contender takes its fastest way.
        """
        ...
