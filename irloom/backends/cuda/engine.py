"""The CUDA engine: a step is one graph, which takes its arrays from the host and tells it the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from irloom.backends.caches import empty_caches
from irloom.backends.core import Limits
from irloom.ir.errors import OutOfMemory
from irloom.ir.plan import Pool
from irloom.runtime.core import DRAW, Batch, Draws, Sampled, draw_of

from .alike import rows_alike
from .answers import Submitted
from .arrays import StepArrays
from .buckets import Bucket, Buckets
from .graphs import Graphs, Kind
from .kernels.sample import sample
from .memory import Block
from .program import Program
from .rare import Reports, choose_again
from .room import out_of_memory
from .runner import Runner, Weights, planned
from .work import Workspace


class CudaEngine:
    """See ``runtime.core.Engine``. All memory is taken when the engine opens, but for the scratch of kernels,
    and where values of some step need a larger block than those of the largest.
    """

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
        self.buckets = Buckets(self.max_tokens, self.max_seqs, exact=program.exact)
        largest = self.buckets.largest
        self.arrays = StepArrays(pools, largest, max_context, self.device)
        caches = empty_caches(program.module, {p.name: p.pages for p in pools}, self.device)
        block = Block(planned(program, largest.tokens, largest.seqs), self.device)
        self.runner = Runner(program, weights, caches, block)
        self.graphs = Graphs(enabled=self.device.type == "cuda" and not program.exact)
        self.chosen = torch.zeros(largest.seqs, dtype=torch.int32, device=self.device)
        self.work = Workspace(self.device)
        self.alike = limits.batch_invariant
        self._logits: dict[Bucket, torch.Tensor] = {}
        self._bucket = largest  # that the last step was loaded as

    def step(self, batch: Batch) -> Sequence[Sampled | None]:
        """One step: see ``runtime.core.Engine``."""
        asked = [s for s, row in enumerate(batch.sampling) if row is not None]
        if not len(batch.draws):
            draws = np.array([draw_of(row) for row in batch.sampling], DRAW)
            batch = replace(batch, draws=draws, rare=tuple(asked))
        chosen = self.submit(batch).take()
        out: list[Sampled | None] = [None] * len(batch.sampling)
        for s in asked:
            out[s] = chosen.reported.get(s) or Sampled(int(chosen.tokens[s]))
        return out

    def submit(self, batch: Batch) -> Submitted:
        """Queue a step: see ``runtime.core.Overlapped``."""
        try:
            logits = self.logits(batch)
            with torch.inference_mode():
                reports = self._rare(batch, logits) if batch.rare else None
                instead = self.chosen if batch.rare else None
                return Submitted(self.arrays.answer(len(batch.context), instead), reports)
        except Exception as error:
            if not out_of_memory(error):
                raise
            self._let_go()
            raise OutOfMemory(
                f"cuda: no memory for a step of {len(batch.tokens)} tokens of {len(batch.context)} sequences",
                hint="a smaller `memory` for caches leaves more, a smaller `max_tokens` needs less",
            ) from error

    def _let_go(self) -> None:
        """Give back what can be had again: graphs, and memory that nothing lies in."""
        self.runner.work.reset()
        self.graphs.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _rare(self, batch: Batch, logits: torch.Tensor) -> Reports | None:
        """Choose again where scores are changed or reported."""
        self.work.reset()
        return choose_again(self.chosen, logits, self.arrays.there(self._bucket)[1], batch, self.work)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Store the batch's keys and values, and sample; the logits [S, vocab] of the last tokens, f32 or
        what widens to it.
        """
        bucket, cuts = kind = self._kind(batch)
        with torch.inference_mode():
            self._make_room(bucket)
            self.arrays.load(batch, bucket)
            self._bucket = bucket
            with rows_alike(self.alike):
                self.graphs.run(kind, lambda: self._queue(bucket, cuts))
            self.arrays.sent()
        return self._logits[bucket][: len(batch.context)]

    def _make_room(self, bucket: Bucket) -> None:
        """Have the block hold the values of such a step: those of other sizes leave other gaps, and may reach
        further than those of a larger one.
        """
        size = planned(self.program, bucket.tokens, bucket.seqs)
        if size > len(self.runner.block.bytes):
            block = Block(size, self.device)  # where there is no memory for it, all stays as it is
            self.graphs.clear()  # they have the addresses of the old one
            self._logits.clear()  # these lie there, and would keep it
            self.runner.block = block

    def _kind(self, batch: Batch) -> Kind:
        """What a step is run as: its own kind where rows must be alike, and where a request is alone, which
        says the same each time.
        """
        kind = self.buckets.of(len(batch.tokens), len(batch.context)), any_cut(batch.draws)
        return kind if self.alike or len(batch.context) == 1 else self.graphs.home(kind)

    def _queue(self, bucket: Bucket, cuts: bool) -> None:
        step, draws = self.arrays.there(bucket)
        chosen = self.chosen[: bucket.seqs]
        self.arrays.arrive(bucket, self.chosen)
        logits = self._logits[bucket] = self.runner.run(step)
        sample(chosen, logits, draws, work=self.runner.work, cuts=cuts)
        self.arrays.leave(chosen)
        self.runner.work.reset()


def any_cut(draws: Draws) -> bool:
    """Whether a row is drawn with top-k, top-p or min-p: those need more kernels."""
    cut = (draws["floor"] > -np.inf) | (draws["top_p"] < 1) | (draws["top_k"] > 0)
    return bool(((draws["asked"] != 0) & (draws["temperature"] > 0) & cut).any())
