"""How fast a model answers on this machine: what ``irloom bench`` prints."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass

from irloom.backends.core import Report, quiet
from irloom.backends.machine import read_bandwidth
from irloom.runtime import SamplingParams

from .llm import LLM


@dataclass(frozen=True)
class Figures:
    """What ``measure`` found, medians: seconds, tokens per second, a share of the measured read bandwidth."""

    first_token_s: float
    decode_per_s: float
    bandwidth_share: float | None
    total_per_s: float
    output_per_s: float


def measure(
    llm: LLM, requests: int, prompt_tokens: int, new_tokens: int, repeats: int, progress: Report | None = None
) -> Figures:
    """One request alone, then ``requests`` together, on random tokens; medians of ``repeats`` runs."""
    draw, report = random.Random(0), progress or quiet
    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)

    def prompt() -> list[int]:
        return [draw.randrange(llm.engine.vocab) for _ in range(prompt_tokens)]

    first, decode, total = [], [], []
    for n in range(repeats + 1):
        report("measure", n, repeats + 1)
        start = time.perf_counter()
        times = [time.perf_counter() for delta in llm.loop.stream(prompt(), params) if delta.token_ids]
        first.append(times[0] - start)
        decode.append((len(times) - 1) / (times[-1] - times[0]))
        start = time.perf_counter()
        llm.loop.generate([prompt() for _ in range(requests)], params)
        total.append(time.perf_counter() - start)
    report("measure", repeats + 1, repeats + 1)
    alone, wall = statistics.median(decode[1:]), statistics.median(total[1:])
    read = getattr(llm.engine, "bytes_read", None)
    share = alone * read / read_bandwidth() if read else None
    outputs = requests * new_tokens
    return Figures(
        statistics.median(first[1:]),
        alone,
        share,
        (outputs + requests * prompt_tokens) / wall,
        outputs / wall,
    )
