"""The CPU engine: one step is one run of the program, then the sampler."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from irloom.backends.cpu.runner import Runner
from irloom.backends.cpu.step import Step
from irloom.ir.plan import Pool
from irloom.runtime.core import Batch, Sampled
from irloom.runtime.sampler import sample_batch


class CpuEngine:
    """Runs steps of a lowered program. Not for use from two threads at once."""

    def __init__(
        self,
        runner: Runner,
        step: Step,
        vocab: int,
        pools: tuple[Pool, ...],
        max_context: int,
        bytes_read: int,
    ) -> None:
        self.runner, self._step = runner, step
        self.vocab, self.pools, self.max_context, self.bytes_read = vocab, pools, max_context, bytes_read
        self.max_tokens, self.max_seqs = step.tokens_now.most, step.seqs_now.most

    def logits(self, batch: Batch) -> torch.Tensor:
        """Store keys and values; the logits [S, vocab] of last tokens, valid until the next step."""
        self._step.load(batch)
        with torch.inference_mode():
            return self.runner.run()

    def step(self, batch: Batch) -> Sequence[Sampled | None]:
        """One step: see ``runtime.core.Engine``."""
        return sample_batch(self.logits(batch), batch)
