"""A step on its way through the engine, whether or not the engine takes the next one meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from irloom.runtime.core import Batch, Chosen, Engine, Overlapped, Pending, Sampled
from irloom.runtime.scheduler import Chunks


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that was submitted and is not taken yet; ``waited`` for before the next one is scheduled."""

    chunks: Chunks
    pending: Pending
    waited: bool


@dataclass(frozen=True, slots=True)
class Landed:
    """Obeys ``Pending``: a step that has run."""

    chosen: Chosen

    def take(self) -> Chosen:
        """Nothing to wait for."""
        return self.chosen


def submitter(engine: Engine) -> Callable[[Batch], Pending]:
    """How steps are submitted: to an engine that does not overlap, by running them."""
    if isinstance(engine, Overlapped):
        return engine.submit
    return lambda batch: Landed(chosen(engine.step(batch)))


def chosen(sampled: Sequence[Sampled | None]) -> Chosen:
    """What ``Engine.step`` says, in arrays."""
    tokens = np.array([0 if one is None else one.token for one in sampled], np.int32)
    reported = {i: one for i, one in enumerate(sampled) if one is not None and one.logprob is not None}
    return Chosen(tokens, reported)
