"""What the host costs of each step: the loop on an engine that computes nothing, with all requests decoding.

    python benchmarks/host.py --json host.json

Figures are medians over steps, in microseconds of CPU time for each running request. README.md here says how
to read the table.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from time import thread_time

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    say(str(machine()))
    rows, samples = [HEADS], dict[str, list[float]]()
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
