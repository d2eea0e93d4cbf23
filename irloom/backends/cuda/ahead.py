"""Kernels compiled side by side before the first is launched: a rehearsal notes what a run would compile.

Triton compiles in Python, one kernel after another however many threads ask for them. So what a build is to
run is rehearsed: every launch is made as it will be, but none reaches the GPU, and every kernel that is not
there yet is noted. Processes then compile those into Triton's cache, where the run finds them. The processes
are forked: they have what was noted in their memory, and do nothing that needs the GPU.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from .tuning import tuner


@dataclass(frozen=True)
class Job:
    """A kernel to compile: Triton's function, the types and constants of its parameters, how for what."""

    fn: Any
    signature: dict[str, Any]
    constants: dict[Any, Any]
    attrs: dict[Any, Any]
    options: dict[str, Any]
    target: Any

    def compile(self) -> None:
        """Put the kernel, and the C module that launches it, into Triton's cache."""
        import triton
        from triton.runtime.driver import driver

        source = self.fn.ASTSource(self.fn, self.signature, self.constants, self.attrs)
        made = triton.compile(source, target=self.target, options=self.options)
        active: Any = driver.active
        active.launcher_cls(made.src, made.metadata)


def rehearsed(run: Callable[[], object]) -> list[Job]:
    """The kernels that ``run`` would compile and that this process has not loaded, each once.

    Nothing is launched: tensors that kernels make keep what was in them, so ``run`` must not look at any.
    Where a kernel is chosen by the clock, all candidates are noted.
    """
    noted: dict[tuple[object, str], Job] = {}
    with _noting(noted), tuner().rehearsal():
        run()
    return list(noted.values())


def compile_all(jobs: list[Job], report: Callable[[int, int], None], processes: int | None = None) -> None:
    """Compile ``jobs``, as many at a time as there are cores; one that fails will say so when it is run.

    From the last to the first: large steps are rehearsed after small ones, and their kernels take longer.
    """
    count = min(processes or len(os.sched_getaffinity(0)), len(jobs))
    report(0, len(jobs))
    if count < 2:
        return
    with warnings.catch_warnings(), ProcessPoolExecutor(count, get_context("fork"), _begin, (jobs,)) as pool:
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks of a process with threads
        begun = [pool.submit(_one, i) for i in reversed(range(len(jobs)))]
        for done, _ in enumerate(as_completed(begun), 1):
            report(done, len(jobs))


@contextmanager
def _noting(noted: dict[tuple[object, str], Job]) -> Iterator[None]:
    """Inside, a kernel that would be compiled is noted, and its launch left out."""
    from triton import knobs
    from triton.runtime.driver import driver

    target = driver.active.get_current_target()

    def note(*, fn: Any, compile: Any, **more: object) -> bool:
        key = fn.jit_function, str(compile["key"])
        if key not in noted:
            given = json.loads(compile["specialization_data"])["options"]
            options = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
            attrs = compile["configs"][0]
            noted[key] = Job(
                fn.jit_function, compile["signature"], compile["constants"], attrs, options, target
            )
        return True

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, note
    try:
        yield
    finally:
        knobs.runtime.jit_cache_hook = before


_jobs: list[Job] = []
"""Of a forked process: set as it begins."""


def _begin(jobs: list[Job]) -> None:
    _jobs.extend(jobs)


def _one(i: int) -> None:
    with suppress(Exception):
        _jobs[i].compile()
