"""Running a lowered program: its names are bound to memory and kernels, then Python runs its file."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from irloom.backends.cpu.calls import Calls
from irloom.backends.cpu.memory import AnyCache, Memory
from irloom.backends.cpu.native import Raw
from irloom.backends.cpu.recurrent import Recurrences
from irloom.backends.cpu.step import PoolArrays, Rows, Step


class Runner:
    """A program, in a file, with everything it names; ``run`` computes one step.

    ``weights`` maps a bound name to its value, or to one per layer; ``caches`` a cache's name to it, or to a
    list; ``extra`` has the kernels that are made for it, see ``backend.extra``.
    """

    def __init__(
        self,
        program: Path,
        raw: Raw,
        step: Step,
        extra: Mapping[str, Any],
        weights: Mapping[str, Any],
        caches: Mapping[str, AnyCache | Sequence[AnyCache]],
    ) -> None:
        self._raw, self._step, self._memory = raw, step, Memory(raw, step, weights)
        calls = {**Calls(raw, step).names(), **Recurrences(raw, step).names(), **extra}
        names = {**self._memory.names(), **calls, **caches}
        self._names = runpy.run_path(str(program), names)
        self._main: Callable[[], Rows] = self._names["main"]

    def run(self) -> torch.Tensor:
        """One step on what the step's arrays hold: the logits [S, vocab], valid until the next one."""
        for pool in self._step.pools.values():
            if not pool.pool.cut:
                self._slots(pool)
        for table in self._memory.turns:
            table.update()
        return self._main().tensor()

    def _slots(self, pool: PoolArrays) -> None:
        """Where each token of the step goes in the caches of a pool."""
        step, starts = self._step, self._step.starts_ptr
        sizes = (step.seqs_now.now, pool.max_pages, pool.pool.page)
        self._raw.slots(starts, step.context_ptr, pool.table_ptr, *sizes, pool.slots_ptr, 0)
