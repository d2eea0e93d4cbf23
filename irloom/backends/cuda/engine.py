"""The CUDA engine: a step is one copy to the device, one graph, and the tokens that come back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from irloom.backends.core import Limits
from irloom.backends.device_sampler import sample
from irloom.ir.plan import Pool
from irloom.runtime.core import Batch, Sampled

from .arrays import StepArrays
from .buckets import Bucket, Buckets
from .caches import empty_caches
from .graphs import Graphs
from .memory import Block
from .program import Program
from .runner import Runner, Weights, planned


class CudaEngine:
    """See ``runtime.core.Engine``. All memory but the scratch of kernels is taken when the engine opens."""

    def __init__(
        self,
        program: Program,
        weights: Weights,
        pools: tuple[Pool, ...],
        limits: Limits,
        max_context: int,
        device: torch.device | str = "cuda",
    ) -> None:
        self.program, self.pools, self.device = program, pools, torch.device(device)
        self.max_tokens, self.max_context = limits.max_tokens, max_context
        self.max_seqs = min(limits.max_seqs, limits.max_tokens)
        vocab = program.module.main.returns[0].type.dims[1]
        assert isinstance(vocab, int)
        self.vocab = vocab
        largest = Bucket(self.max_tokens, self.max_seqs, False)
        self.buckets = Buckets(self.max_tokens, self.max_seqs, exact=program.exact)
        self.arrays = StepArrays(pools, largest, max_context, self.device)
        caches = empty_caches(program.module, {p.name: p.pages for p in pools}, self.device)
        block = Block(planned(program, self.max_tokens, self.max_seqs), self.device)
        self.runner = Runner(program, weights, caches, block)
        self.graphs = Graphs(enabled=self.device.type == "cuda" and not program.exact)
        self._logits: dict[Bucket, torch.Tensor] = {}

    def step(self, batch: Batch) -> Sequence[Sampled | None]:
        """One step: see ``runtime.core.Engine``."""
        logits = self.logits(batch)
        asked = [s for s, row in enumerate(batch.sampling) if row is not None]
        told = [row for row in batch.sampling if row is not None]
        out: list[Sampled | None] = [None] * len(batch.sampling)
        with torch.inference_mode():
            chosen = sample(logits, told, None if len(asked) == len(out) else asked)
        for s, one in zip(asked, chosen, strict=True):
            out[s] = one
        return out

    def logits(self, batch: Batch) -> torch.Tensor:
        """Store the batch's keys and values; the logits [S, vocab] of each sequence's last token."""
        bucket = self.buckets.of(len(batch.tokens), len(batch.context))
        with torch.inference_mode():
            self.arrays.load(batch, bucket)
            self.graphs.run(bucket, lambda: self._queue(bucket))
        return self._logits[bucket][: len(batch.context)]

    def _queue(self, bucket: Bucket) -> None:
        self._logits[bucket] = self.runner.run(self.arrays.step(bucket))
