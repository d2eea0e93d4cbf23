"""One plan, built: TensorRT's messages go to the plan's log, and its failures are told.

A builder may be ended for memory, and it prints as it likes, so ``workers`` runs this in other processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from irloom.backends.artifact import FULL
from irloom.backends.locks import locked
from irloom.ir.files import write_whole

from .emitter import Emitter
from .library import Library, load
from .network import Tensor
from .phases import Phases
from .plan import Recipe

if TYPE_CHECKING:
    import torch

Tell = Callable[[str, float], bool]
"""``tell(phase, share)``: what the builder is at, and how much is done; False cancels the build."""


@dataclass(frozen=True)
class Job:
    """A plan to be built: its recipe, and the files for the plan, the log and what was timed before."""

    recipe: Recipe
    plan: Path
    log: Path
    timing: Path | None = None


class BuildFailed(Exception):
    """A build that gave no plan; ``kind`` is ``memory``, ``disk``, ``cancelled`` or ``refused``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


def build(job: Job, tell: Tell) -> dict[str, Any]:
    """Build a plan into its file; facts for its record. ``BuildFailed`` says why there is none."""
    library, start, cpu = load(), perf_counter(), process_time()
    with job.log.open("w", encoding="utf-8", buffering=1) as log:
        os.dup2(log.fileno(), 1)  # what the library prints itself
        os.dup2(log.fileno(), 2)
        messages = _messages(library)
        messages.begin(log.write)
        data = _serialized(library, job, messages.logger, tell)
        if data is None:
            raise failure(messages.errors)
        _write(job.plan, data)
        seconds, cpu = perf_counter() - start, process_time() - cpu
        log.write(f"plan: {job.plan.stat().st_size} bytes in {seconds:.3f} s, {cpu:.3f} s of CPU time\n")
    return {"seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3)}


def _serialized(library: Library, job: Job, logger: Any, tell: Tell) -> Any:
    trt, recipe = library.trt, job.recipe
    builder = trt.Builder(logger)
    network = builder.create_network()
    emitter = Emitter(trt, network, _zeros)
    emitter.emit(recipe.network)
    config = builder.create_builder_config()
    if recipe.builder.held == "refit":
        config.set_flag(trt.BuilderFlag.REFIT)
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        if recipe.builder.library == "tensorrt_rtx":  # several GPUs at once are not refittable
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
    config.progress_monitor = _monitor(trt, tell)
    for profile in recipe.profiles:
        made = builder.create_optimization_profile()
        for t in recipe.network.inputs:
            if any(not isinstance(d, int) for d in t.dims):
                made.set_shape(t.name, *profile.shapes(t))
        config.add_optimization_profile(made)
    if job.timing is None:
        return builder.build_serialized_network(network, config)
    return _timed(builder, network, config, job.timing)


def _zeros(t: Tensor) -> torch.Tensor:
    """What stands for a weight while a plan is built: pages of the system's zeros, which take no memory."""
    import torch

    return torch.zeros([d for d in t.dims if isinstance(d, int)], dtype=t.elem.torch)


def _timed(builder: Any, network: Any, config: Any, file: Path) -> Any:
    """Build with what earlier builds timed, and keep what this one did."""
    timed = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    config.set_timing_cache(timed, False)
    data = builder.build_serialized_network(network, config)
    if data is not None:
        with locked(file.with_suffix(".lock")):
            if file.is_file():  # others may have added to it
                timed.combine(config.create_timing_cache(file.read_bytes()), True)
            write_whole(file, bytes(memoryview(timed.serialize())))
    return data


def _write(file: Path, data: Any) -> None:
    try:
        with file.open("wb") as f:
            f.write(memoryview(data))
            f.flush()
            os.fsync(f.fileno())
    except OSError as error:
        if error.errno in FULL:
            raise BuildFailed("disk", f"{file.parent}: {error.strerror}") from None
        raise


class _Messages:
    """What the library says: written to the log of the plan that is being built; errors are kept."""

    def __init__(self, trt: Any) -> None:
        def log(_: Any, severity: Any, msg: str) -> None:
            if severity != trt.ILogger.VERBOSE:
                self(severity.name, msg)

        self.logger = type("Logger", (trt.ILogger,), {"log": log})()
        self.begin(lambda _: None)

    def begin(self, write: Callable[[str], object]) -> None:
        """The messages of another plan follow."""
        self.write, self.errors = write, list[str]()

    def __call__(self, severity: str, message: str) -> None:
        self.write(f"{severity}: {message}\n")
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(message)


@cache
def _messages(library: Library) -> _Messages:
    """The one logger that the library takes in a process."""
    return _Messages(library.trt)


def _monitor(trt: Any, tell: Tell) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases, self.go_on = Phases(), True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.start(phase_name, num_steps)
            self.told()

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.phases.step(phase_name, step)
            return self.told()

        def phase_finish(self, phase_name: str) -> None:
            self.phases.finish(phase_name)

        def told(self) -> bool:
            self.go_on = self.go_on and tell(self.phases.now, self.phases.share)
            return self.go_on

    return Monitor()


def failure(errors: Sequence[str]) -> BuildFailed:
    """Why the builder gave no plan, from what it said; the first error is the cause of the others."""
    said = errors[0] if errors else "the builder gave no plan and no reason"
    for kind, signs in _SIGNS.items():
        if any(sign in e for e in errors for sign in signs):
            return BuildFailed(kind, said)
    return BuildFailed("refused", said)


_SIGNS = {
    "cancelled": ("BuildCanceled",),
    "memory": ("bad_alloc", "OutOfMemory", "out of memory", "allocate memory", "failed to allocate"),
}
