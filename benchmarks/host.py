"""What the host costs of each step: the loop on an engine that computes nothing, with all requests decoding.

    python benchmarks/host.py --json host.json
    python benchmarks/host.py --engine ENGINE --requests 256      # beside what a real engine takes

Figures are medians over steps, in microseconds of CPU time for each running request. README.md here says how
to read the table.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np
from report import machine, print_table, say, write_json

from irloom.ir.plan import Pool
from irloom.runtime import Batch, Chosen, Loop, Pending, Sampled, SamplingParams
from irloom.runtime.flight import Landed

PAGE, CONTEXT, PROMPT = 64, 4096, 128
HEADS = ("requests", "choice", "read", "engine", "us/request/step", "slowest of 100")
CHOICES = {
    "greedy": SamplingParams(max_tokens=None, temperature=0),
    "drawn": SamplingParams(max_tokens=None, seed=1, top_p=0.9),
}


class Null:
    """An engine that samples the same token always."""

    vocab, max_tokens, max_context = 128_256, 8192, CONTEXT

    def __init__(self, seqs: int) -> None:
        self.max_seqs = seqs
        self.pools = (Pool("keys", None, PAGE, 0, seqs * CONTEXT // PAGE),)

    def step(self, batch: Batch) -> Sequence[Sampled | None]:
        """All at once."""
        return [Sampled(7)] * len(batch.context)


class NullAhead(Null):
    """The same, taking a step before the one in front is taken."""

    def submit(self, batch: Batch) -> Pending:
        """Nothing is left to do."""
        return Landed(Chosen(np.full(len(batch.context), 7, np.int32)))


def measured(engine: Null, params: SamplingParams, streamed: bool, steps: int) -> list[float]:
    """Microseconds for each request, of ``steps`` steps in which all decode."""
    loop, times = Loop(engine), list[float]()
    prompts = [[(31 * i + j) % 1000 for j in range(PROMPT)] for i in range(engine.max_seqs)]
    requests = [loop._request(prompt, params) for prompt in prompts]
    for request in requests:
        loop._enter(request, loop._ready, quiet=not streamed)
    while not all(request.table and request.table.stored > PROMPT for request in requests):
        loop.step()
    for _ in range(steps):
        start = thread_time()
        loop.step()
        times.append((thread_time() - start) / engine.max_seqs * 1e6)
    return times


class Watched:
    """An engine that takes steps ahead, and for how long the host has waited for its steps."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.waited = engine, 0.0
        self.vocab, self.pools, self.max_context = engine.vocab, engine.pools, engine.max_context
        self.max_tokens, self.max_seqs = engine.max_tokens, engine.max_seqs

    def step(self, batch: Batch) -> Sequence[Sampled | None]:
        """As the engine does."""
        return self.engine.step(batch)

    def submit(self, batch: Batch) -> Pending:
        """As the engine does; taking it is timed."""
        return Taken(self, self.engine.submit(batch))


@dataclass(frozen=True)
class Taken:
    """A step of a watched engine."""

    watched: Watched
    pending: Pending

    def take(self) -> Chosen:
        """As the engine does."""
        start = perf_counter()
        chosen = self.pending.take()
        self.watched.waited += perf_counter() - start
        return chosen


def beside(folder: Path, count: int, steps: int) -> None:
    """Of steps in which ``count`` requests decode: how long they take, and how long the host works on them.

    It does so while the device runs the step before: as long as it also waits, that delays nothing.
    """
    from irloom import LLM

    llm = LLM(folder, max_seqs=count, max_context=PROMPT + steps + 64)
    watched = Watched(llm.engine)
    rows: list[tuple[str, ...]] = [("requests", "read", "us/step", "host works", "waits")]
    for streamed in (False, True):
        loop = Loop(watched)
        params = SamplingParams(max_tokens=steps + 32, temperature=0, ignore_eos=True)
        for i in range(count):
            request = loop._request([(31 * i + j) % 1000 for j in range(PROMPT)], params)
            loop._enter(request, loop._ready, quiet=not streamed)
        for _ in range(-(-count * PROMPT // llm.engine.max_tokens) + 8):
            loop.step()
        watched.waited, start = 0.0, perf_counter()
        for _ in range(steps // 2):
            loop.step()
        each, waited = ((perf_counter() - start) / (steps // 2), watched.waited / (steps // 2))
        while loop.unfinished:
            loop.step()
        read = "streamed" if streamed else "at the end"
        rows.append(
            (str(count), read, f"{each * 1e6:,.0f}", f"{(each - waited) / each:.1%}", f"{waited / each:.1%}")
        )
    print_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--engine", type=Path, help="an engine directory")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    say(str(machine()))
    if options.engine is not None:
        for count in options.requests:
            beside(options.engine, count, options.steps)
        return
    rows: list[tuple[str, ...]] = [HEADS]
    samples = dict[str, list[float]]()
    for count in options.requests:
        for choice, params in CHOICES.items():
            for streamed in (False, True):
                for make in (Null, NullAhead):
                    times = measured(make(count), params, streamed, options.steps)
                    name = (str(count), choice, "streamed" if streamed else "at the end", make.__name__)
                    samples[" ".join(name)] = times
                    slow = statistics.quantiles(times, n=100)[-1]
                    rows.append((*name, f"{statistics.median(times):.2f}", f"{slow:.2f}"))
    print_table(rows)
    write_json(options.json, {"machine": machine(), "samples": samples})


if __name__ == "__main__":
    main()
