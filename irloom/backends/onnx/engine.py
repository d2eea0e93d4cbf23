"""The ONNX engine: a step is at most two runs of the model, over slots whose caches are bound in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from irloom.backends.slots import Slots, SlotStep
from irloom.backends.slots import length as cache_length
from irloom.ir.errors import IrloomError
from irloom.ir.plan import Pool
from irloom.runtime.core import Batch, Sampled
from irloom.runtime.sampler import sample_batch

from .caches import Caches, Part
from .session import cache_inputs

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

I32, F32 = 6, 1
"""ONNX's numbers of these types."""
GIVEN = ("positions", "last", "starts", "past", "lengths", "pad", "unpad")
"""Inputs that a step has under the same name; a model takes those that it uses."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sizes:
    """What an engine was opened for: tokens and sequences of a step, tokens of a sequence."""

    max_tokens: int
    max_seqs: int
    max_context: int


class OnnxEngine:
    """Runs steps of a model in ONNX Runtime. Not for use from two threads at once.

    What is written for a slot that brings fewer tokens than others of its run lies behind its own keys: so a
    slot may get ``max_tokens`` longer than its sequence.
    """

    def __init__(
        self, session: InferenceSession, sizes: Sizes, pools: tuple[Pool, ...], vocab: int, bytes_read: int
    ) -> None:
        self.session, self.pools, self.vocab, self.bytes_read = session, pools, vocab, bytes_read
        self.max_tokens, self.max_seqs, self.max_context = sizes.max_tokens, sizes.max_seqs, sizes.max_context
        slots, longest = pools[0].pages, cache_length(sizes.max_context, sizes.max_tokens)
        self.slots = Slots(slots)
        self.caches = Caches(cache_inputs(session), slots, longest)
        self._logits = np.zeros((sizes.max_seqs, vocab), np.float32)
        self._decode, self._chunks = (_Binding(session, self.caches) for _ in range(2))

    def logits(self, batch: Batch) -> torch.Tensor:
        """Store keys and values; the logits [S, vocab] of last tokens, valid until the next step."""
        rows, order = self._compute(batch)
        return rows if order == sorted(order) else rows[np.argsort(order)]

    def step(self, batch: Batch) -> Sequence[Sampled | None]:
        """One step: see ``runtime.core.Engine``."""
        rows, order = self._compute(batch)
        asked = replace(batch, sampling=tuple(batch.sampling[s] for s in order))
        sampled = dict(zip(order, sample_batch(rows, asked), strict=True))
        return [sampled[s] for s in range(len(order))]

    def _compute(self, batch: Batch) -> tuple[torch.Tensor, list[int]]:
        """Logits by sequence, in the order in which they were computed, and that order."""
        order = list[int]()
        for step in self.slots.steps(batch):
            self._enqueue(step, len(order))
            order += step.sequences
        return torch.from_numpy(self._logits[: len(order)]), order

    def _enqueue(self, step: SlotStep, row: int) -> None:
        """One run; its logits are the rows from ``row`` on."""
        for b in np.flatnonzero((step.past == 0) & (np.diff(step.starts) > 0)):
            self.caches.forget(step.first + int(b))
        length = int(step.past.max()) + step.width
        self.caches.reach(length, self.slots.lengths)
        out = self._logits[row : row + len(step.sequences)]
        (self._chunks if step.width > 1 else self._decode).run(step, length, out)


class _Binding:
    """What one kind of run reads and writes: most see the caches as the one before did."""

    def __init__(self, session: InferenceSession, caches: Caches) -> None:
        self.session, self.caches = session, caches
        self.binding = session.io_binding()
        self.inputs = {i.name for i in session.get_inputs()}
        self.logits = session.get_outputs()[0].name
        self.part: Part | None = None

    def run(self, step: SlotStep, length: int, logits: Array) -> None:
        """Slots of ``length`` tokens; ``logits`` [S, vocab] is written."""
        self._bind_caches(self.caches.part(step.first, step.slots, length))
        arrays = {"ids": step.tokens, **{name: getattr(step, name) for name in GIVEN}}
        for name in self.inputs & arrays.keys():
            given: Array = arrays[name]
            self.binding.bind_input(name, "cpu", 0, I32, given.shape, given.ctypes.data)
        self.binding.bind_output(self.logits, "cpu", 0, F32, logits.shape, logits.ctypes.data)
        try:
            self.session.run_with_iobinding(self.binding)
        except Exception as error:  # ONNX Runtime's errors have no class in common but this
            reason = str(error).splitlines()[0]
            what = f"{len(step.tokens)} tokens in {step.slots} slots of {self.caches.length}"
            raise IrloomError(f"ONNX Runtime failed in a step of {what}: {reason}") from error

    def _bind_caches(self, part: Part) -> None:
        if part == self.part:
            return
        for v in self.caches.views(part):
            self.binding.bind_input(v.name, "cpu", 0, v.kind, v.dims, v.address)
            self.binding.bind_output(f"{v.name}.out", "cpu", 0, v.kind, v.dims, v.address)
        self.part = part
