"""One build, or one look at its parts, in a fresh process; prints its times as one JSON object.

build_worker.py compile MODEL OUT | open MODEL | read MODEL
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()
STAGES = ("trace", "passes", "tokenizer", "lower", "kernels", "weights", "open")


class Stages:
    """Seconds per stage, from the reports of progress: a stage lasts until the next one reports."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._now, self._since = "start", time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        self.seconds[self._now] = self.seconds.get(self._now, 0.0) + now - self._since
        self._since = now
        if done < total:  # what comes after the last report of a stage belongs to the next
            self._now = stage if stage in STAGES else "passes"

    def end(self) -> dict[str, float]:
        self(self._now, 0, 1)
        return self.seconds


def compile_(model: str, out: str) -> dict[str, float]:
    """Trace, passes, weights: an engine directory."""
    import irloom

    imported = time.perf_counter() - STARTED
    build, stages = irloom.compile, Stages()
    start = time.perf_counter()
    build(model, out=out, progress=stages)
    return {"import": imported, **stages.end(), "total": time.perf_counter() - start}


def open_(model: str) -> dict[str, float]:
    """``LLM(model)``: built into the cache if it is not there, then opened."""
    import irloom

    made, stages = irloom.LLM, Stages()
    start = time.perf_counter()
    made(model, progress=stages)
    return {**stages.end(), "total": time.perf_counter() - start}


def read(model: str) -> dict[str, float]:
    """What reading alone takes: header and config, the tokenizer's conversion, every tensor."""
    from irloom.frontends.core import TraceOptions, frontend_of

    path, times = Path(model), [time.perf_counter()]
    front = frontend_of(path)
    front.facts(path)
    times.append(time.perf_counter())
    front.tokenizer(path)
    times.append(time.perf_counter())
    checkpoint = front.checkpoint(path, TraceOptions())
    times.append(time.perf_counter())
    for name in checkpoint.names():
        checkpoint.read(name)
    times.append(time.perf_counter())
    names = ("header", "tokenizer", "names", "tensors")
    return {n: b - a for n, a, b in zip(names, times, times[1:], strict=False)}


if __name__ == "__main__":
    commands = {"compile": compile_, "open": open_, "read": read}
    print(json.dumps(commands[sys.argv[1]](*sys.argv[2:])))
