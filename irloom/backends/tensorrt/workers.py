"""Plans built side by side, in processes that may be killed without harm to this one."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from irloom.ir.errors import BuildError

from .builder import BuildFailed, Job, Tell, build, failure

HINTS = {
    "memory": "close what else uses memory, or build smaller networks: --cut layer",
    "disk": "make room there, or set XDG_CACHE_HOME to a folder on another disk",
    "cancelled": "start it again",
    "refused": "the log says what the builder was at",
}


@dataclass
class _Worker:
    """A process that builds one plan after another; ``at`` is the one it builds now."""

    process: BaseProcess
    pipe: Connection
    at: tuple[int, Job] | None = None

    def give(self, number: int, job: Job) -> None:
        """Let it build a plan."""
        self.at = number, job
        self.pipe.send(job)

    @property
    def job(self) -> Job:
        assert self.at is not None
        return self.at[1]


class Told:
    """How far every build is, passed on to ``report`` as one bar a plan."""

    def __init__(self, report: Any, total: int) -> None:
        self.report, self.total = report, total

    def __call__(self, number: int, phase: str, share: float) -> None:
        """Plan ``number``, from 1, is at ``phase``, with ``share`` of it done."""
        self.report(f"plan {number} of {self.total}: {phase}", round(share * 1000), 1000)


def build_all(jobs: Sequence[Job], at_once: int, told: Told) -> list[dict[str, Any]]:
    """Build every plan, so many at once; facts of each in order. ``BuildError`` for the first that fails,
    once the others are stopped.
    """
    facts: dict[int, dict[str, Any]] = {}
    todo = list(enumerate(jobs))
    with _workers(min(at_once, len(jobs))) as workers:
        while len(facts) < len(jobs):
            for worker in [w for w in workers if w.at is None][: len(todo)]:
                worker.give(*todo.pop(0))
            by_pipe = {w.pipe: w for w in workers if w.at is not None}
            for pipe in wait(list(by_pipe)):
                worker = by_pipe[pipe]  # type: ignore[index]
                number, done = _message(worker, told)
                if done is not None:
                    facts[number], worker.at = done, None
    return [facts[i] for i in range(len(jobs))]


@contextmanager
def _workers(count: int) -> Iterator[list[_Worker]]:
    """So many processes, which end with this."""
    made: list[_Worker] = []
    try:
        made += (_start() for _ in range(count))
        yield made
    finally:
        for worker in made:
            worker.process.kill()
            worker.process.join()


def _start() -> _Worker:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["irloom.backends.tensorrt.builder", "torch"])
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there,), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here)


def _message(worker: _Worker, told: Told) -> tuple[int, dict[str, Any] | None]:
    """The next thing that a worker says: facts once its plan is built."""
    assert worker.at is not None
    number = worker.at[0]
    try:
        kind, *said = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        raise _ended(worker) from None
    if kind == "at":
        told(number + 1, *said)
        return number, None
    if kind == "done":
        told(number + 1, "done", 1.0)
        return number, said[0]
    why, message = said
    raise _error(worker, message, why)


def _ended(worker: _Worker) -> BuildError:
    code = worker.process.exitcode
    if code is None or code >= 0:
        return _error(worker, f"the builder ended with status {code}", "refused")
    name = signal.Signals(-code).name
    if name == "SIGKILL":
        return _error(worker, f"the builder was ended by {name}, as happens when memory runs out", "memory")
    return _error(worker, f"the builder was ended by {name}", "refused")


def _error(worker: _Worker, message: str, why: str) -> BuildError:
    layers = worker.job.recipe.network.layers
    which = (
        f"the network of {len(layers)} layers from {layers[0].name}" if layers else "a network of no layer"
    )
    return BuildError(f"{which}: {message}", hint=HINTS[why]).at(f"log: {worker.job.log}")


def _work(pipe: Connection) -> None:
    """What a worker does: plans, one after another, until nobody is there."""

    def tell(phase: str, share: float) -> bool:
        try:
            pipe.send(("at", phase, share))
        except OSError:  # nobody is left to build for
            return False
        return True

    with suppress(EOFError, OSError):
        while True:
            pipe.send(_built(pipe.recv(), tell))


def _built(job: Job, tell: Tell) -> tuple[Any, ...]:
    try:
        return "done", build(job, tell)
    except BuildFailed as failed:
        return "failed", failed.kind, failed.message
    except MemoryError:
        return "failed", "memory", "out of memory"
    except Exception as error:  # whatever it is, who waits for the plan has to hear of it
        traceback.print_exc()
        failed = failure([str(error) or type(error).__name__])
        return "failed", failed.kind, failed.message
