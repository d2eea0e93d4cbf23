"""How fast a model answers on this machine: what ``irloom bench`` prints of irloom and of each peer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from irloom import __version__
from irloom.backends.core import Report, quiet
from irloom.runtime import Loop, SamplingParams

from .llm import LLM
from .load import Answer, Contender, Load
from .peers.energy import joules

WARM, WARMED = 16, 2
"""Tokens answered by the requests that warm a contender up, and how often they are sent."""


@dataclass(frozen=True)
class Spread:
    """Percentiles of seconds."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Between two samples in proportion.

        >>> Spread.of([1.0, 2.0, 3.0]).p50
        2.0
        """
        return cls(*(float(p) for p in np.percentile(seconds, (50, 90, 99))))


@dataclass(frozen=True)
class Served:
    """How answers came: seconds until the first token of a request, and between one token and the next."""

    first_s: Spread
    between_s: Spread

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Served:
        """All requests of all ``answers``, which were streamed."""
        times = [each for answer in answers for each in answer.times]
        gaps = [b - a for each in times for a, b in pairwise(each)]
        return cls(Spread.of([each[0] for each in times]), Spread.of(gaps))


@dataclass(frozen=True)
class Figures:
    """What ``measure`` found of one contender.

    ``decode_per_s`` are tokens after the first of one request alone; ``output_per_s`` and ``total_per_s``
    tokens of answers, and of prompts and answers, of all requests together; medians over runs, whose samples
    are ``decode_samples`` and ``output_samples``. ``joules_per_token`` are spent on an answered token then.
    ``alone`` and ``together`` are of streamed runs.
    """

    about: str
    decode_per_s: float
    output_per_s: float
    total_per_s: float
    joules_per_token: float | None
    alone: Served
    together: Served
    decode_samples: tuple[float, ...]
    output_samples: tuple[float, ...]


def measure(contender: Contender, load: Load, report: Report = quiet) -> Figures:
    """One request alone, streamed, ``load.repeats`` times; all together as often, and once more streamed."""
    done, total = 0, 2 * (load.repeats + WARMED) + 1

    def answer(requests: int, run: int, stream: bool, new: int = load.new_tokens) -> Answer:
        nonlocal done
        report("measure", done, total)
        done += 1
        return contender.answer(load.prompts(requests, contender.vocab, run), new, stream)

    runs, warm = range(load.repeats), min(WARM, load.new_tokens)
    for run in range(WARMED):
        answer(1, -1 - run, True, warm)
    alone = [answer(1, run, True) for run in runs]
    for run in range(WARMED):
        answer(load.requests, -1 - run, bool(run), warm)
    whole = [answer(load.requests, run, False) for run in runs]
    streamed = answer(load.requests, load.repeats, True)
    report("measure", total, total)
    outputs = load.requests * load.new_tokens
    decode = tuple((load.new_tokens - 1) / (t[-1] - t[0]) for one in alone for t in one.times)
    output = tuple(outputs / one.seconds for one in whole)
    spent = [one.joules / outputs for one in whole if one.joules is not None]
    return Figures(
        contender.about,
        median(decode),
        median(output),
        median(output) * load.longest / load.new_tokens,
        median(spent) if spent else None,
        Served.of(alone),
        Served.of([streamed]),
        decode,
        output,
    )


class Own:
    """irloom's own engine as a contender, on a loop that makes no text."""

    def __init__(self, llm: LLM) -> None:
        self.loop, self.vocab = Loop(llm.engine), llm.engine.vocab
        self.about = f"irloom {__version__} {llm.manifest.target}"

    def answer(self, prompts: list[list[int]], new: int, stream: bool) -> Answer:
        """See ``load.Contender``."""
        before, start = joules(), time.perf_counter()
        times = self.times(prompts, new, stream)
        seconds, after = time.perf_counter() - start, joules()
        since = [[t - start for t in each] for each in times]
        return Answer(seconds, since, None if before is None or after is None else after - before)

    def times(self, prompts: list[list[int]], new: int, stream: bool) -> list[list[float]]:
        """When each token of each answer came, by ``time.perf_counter``; nothing of what is not streamed."""
        params = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True)
        return self._streamed(prompts, params) if stream else self._whole(prompts, params)

    def _whole(self, prompts: list[list[int]], params: SamplingParams) -> list[list[float]]:
        self.loop.generate(prompts, params)
        return [[] for _ in prompts]

    def _streamed(self, prompts: list[list[int]], params: SamplingParams) -> list[list[float]]:
        times = {self.loop.add_request(prompt, params): list[float]() for prompt in prompts}
        while self.loop.unfinished:
            for delta in self.loop.step():
                times[delta.id] += [time.perf_counter()] * len(delta.token_ids)
        return list(times.values())
