"""Examine many architectures, each where neither a crash nor a hang of it can stop the rest.

Workers are processes of their own that take one name after another; one that dies or does not answer in time
is replaced, and what it was at is the row's reason.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol, Self, TypeVar

from irloom.zoo.core import Row
from irloom.zoo.examine import examine


class Told(Protocol):
    """What a sweep says of one architecture."""

    name: str

    def to_json(self) -> dict[str, Any]:
        """For the way back from a worker."""
        ...

    @classmethod
    def from_json(cls, made: Mapping[str, Any]) -> Self:
        """What ``to_json`` was made of."""
        ...

    @classmethod
    def failed(cls, name: str, reason: str) -> Self:
        """What is said where the worker died."""
        ...


R = TypeVar("R", bound=Told)
Work = Callable[[str, Sequence[str] | None], R]

LIMIT = 180.0
"""Seconds after which an architecture is given up."""


def sweep(
    names: Sequence[str],
    jobs: int = 1,
    limit: float = LIMIT,
    columns: Sequence[str] | None = None,
    report: Callable[[R], None] = lambda row: None,
    work: Work[R] = examine,
    kind: type[R] = Row,
) -> list[R]:
    """The rows of ``names``, in their order. ``report`` is called with each as it is done.

    ``work`` examines one and gives a row of ``kind``; it is imported by name in the workers.
    """
    rows: dict[str, R] = {}
    for row in _rows(list(dict.fromkeys(names)), jobs, limit, Asked(work, columns), kind):
        rows[row.name] = row
        report(row)
    return [rows[name] for name in dict.fromkeys(names)]


@dataclass(frozen=True)
class Asked:
    """What to do with a name, and for which columns."""

    work: Work[Any]
    columns: Sequence[str] | None


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    name: str = ""
    since: float = 0.0

    @staticmethod
    def start(asked: Asked) -> _Worker:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_work, args=(theirs, asked), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def give(self, name: str) -> None:
        self.name, self.since = name, time.monotonic()
        self.pipe.send(name)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _rows(names: list[str], jobs: int, limit: float, asked: Asked, kind: type[R]) -> Iterator[R]:
    todo = names[::-1]
    workers: list[_Worker] = []
    try:
        while todo or workers:
            while todo and len(workers) < jobs:
                workers.append(_Worker.start(asked))
                workers[-1].give(todo.pop())
            for worker in _ready(workers, limit):
                row, alive = _take(worker, limit, kind)
                if alive and todo:
                    worker.give(todo.pop())
                else:
                    worker.stop()
                    workers.remove(worker)
                yield row
    finally:
        for worker in workers:
            worker.stop()


def _ready(workers: list[_Worker], limit: float) -> list[_Worker]:
    """Workers that have an answer, are dead, or are late."""
    left = min(w.since + limit for w in workers) - time.monotonic()
    heard = wait([w.pipe for w in workers], max(left, 0.0))
    now = time.monotonic()
    return [w for w in workers if w.pipe in heard or now - w.since >= limit]


def _take(worker: _Worker, limit: float, kind: type[R]) -> tuple[R, bool]:
    """The row of what a worker was at, and whether the worker can go on."""
    if not worker.pipe.poll():
        return kind.failed(worker.name, f"gave up after {limit:.0f} seconds"), False
    try:
        return kind.from_json(worker.pipe.recv()), True
    except EOFError:
        worker.process.join()
        return kind.failed(worker.name, f"the process died with code {worker.process.exitcode}"), False


def _work(pipe: Connection, asked: Asked) -> None:
    """A worker's life: a name in, a row out. Nothing of the library's talk reaches the terminal."""
    import torch

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    _be_quiet()
    torch.set_num_threads(1)
    while True:
        pipe.send(asked.work(pipe.recv(), asked.columns).to_json())


def _be_quiet() -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
