"""How a GPU's memory is shared out: weights, the values of the largest step, scratch, caches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from irloom.ir.errors import OutOfMemory, RequestError

SCRATCH = 1 << 30
"""Bytes left for libraries, graphs and the scratch of kernels, beside a share of all memory."""
SHARE = 0.04


@dataclass(frozen=True)
class Room:
    """Bytes of a GPU: ``free`` now, of ``total``; what ``weights`` and the values of a ``step`` take up.

    >>> Room(free=80 << 30, total=80 << 30, weights=16 << 30, step=2 << 30).for_caches() >> 30
    57
    """

    free: int
    total: int
    weights: int
    step: int

    @staticmethod
    def here(weights: int, step: int) -> Room:
        """On torch's GPU, when torch has given back what it holds of engines that are gone."""
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return Room(free, total, weights, step)

    @property
    def kept(self) -> int:
        """Bytes that are left alone."""
        return SCRATCH + int(self.total * SHARE)

    def for_caches(self, asked: int | None = None) -> int:
        """Bytes for caches: what is ``asked`` for, or all that is left; ``RequestError`` where it is not."""
        left = self.free - self.kept - self.weights - self.step
        need = 1 if asked is None else asked
        if left < need:
            more = "" if asked is None else f", caches {_gb(asked)} (memory)"
            raise RequestError(
                f"the GPU has {_gb(self.free)} free of {_gb(self.total)}, but weights take "
                f"{_gb(self.weights)}, a step's values {_gb(self.step)}{more}, "
                f"and {_gb(self.kept)} are left for libraries",
                hint=self._hint(asked),
            )
        return left if asked is None else asked

    def _hint(self, asked: int | None) -> str:
        if asked is not None and self.free - self.kept - self.weights - self.step > 0:
            return "a smaller `memory`"
        if self.step > self.weights // 4:
            return "a smaller `max_tokens`: a step's values grow with it"
        return "end what else runs on the GPU, or quantize the weights: --with 'quantize(fp8)'"


def out_of_memory(error: BaseException | None) -> torch.OutOfMemoryError | None:
    """The allocation that failed, if one did: a capture that it breaks off raises something else on top."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def told(doing: str, hint: str) -> Iterator[None]:
    """Where an allocation fails inside, ``OutOfMemory`` says what it was for, what was free, what helps."""
    try:
        yield
    except Exception as error:
        failed = out_of_memory(error)
        if failed is None:
            raise
        _, *facts = str(failed).split(". ")
        raise OutOfMemory(f"cuda: no memory for {doing}: {'. '.join(facts[:2])}", hint=hint) from error


def _gb(n: int) -> str:
    return f"{n / 1e9:.1f} GB"
