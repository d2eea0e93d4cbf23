"""Sequences whose scores are changed, or reported: chosen again behind the graph of their step.

Everything is queued and nothing waits, so the next step may be sent before these tokens are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from irloom.backends.device_sampler import Told, adjust, to_host
from irloom.runtime.core import BROKEN, Batch, Sampled, SamplingRow

from .kernels.sample import sample
from .work import Workspace


def choose_again(
    chosen: torch.Tensor, logits: torch.Tensor, draws: torch.Tensor, batch: Batch, work: Workspace
) -> Reports | None:
    """Choose the tokens of ``batch.rare``, with bias, penalties and bans; None where nothing is reported.

    ``chosen`` i32 [S] gets them, from ``logits`` [S, V] and ``draws`` i32 [S, 8] on the same device.
    """
    rows = [row for s in batch.rare if (row := batch.sampling[s]) is not None]
    told = Told.of(rows, batch.rare, logits.shape[-1], logits.device)
    assert told.at is not None
    logits = logits[told.at].float()
    tokens = torch.zeros(len(rows), dtype=torch.int32, device=logits.device)  # tokens in a rehearsal, too
    sample(tokens, adjust(logits, told), draws[told.at], work=work)
    chosen[told.at] = tokens
    if told.reported is None:
        return None
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(told.reported)
    own = logprobs.gather(1, tokens.clamp_min(0).long().unsqueeze(1))
    columns = (tokens.unsqueeze(1), own, top.indices, top.values)
    return Reports(batch.rare, rows, *to_host(torch.cat([c.double() for c in columns], 1)))


@dataclass(frozen=True)
class Reports:
    """Log-probabilities on their way: ``table`` [rare, 2 + 2 n] is on the host once ``done`` has happened.

    Its columns are tokens, their log-probabilities, the ``n`` best tokens, and theirs.
    """

    rare: Sequence[int]
    rows: Sequence[SamplingRow]
    table: torch.Tensor
    done: torch.cuda.Event | None

    def take(self) -> dict[int, Sampled]:
        """Wait; what was chosen for the sequences that asked for log-probabilities, by their number."""
        if self.done is not None:
            self.done.synchronize()
        table = self.table.numpy()
        tokens, most = table[:, 0].astype(np.int64).tolist(), (table.shape[1] - 2) // 2
        found = dict[int, Sampled]()
        for s, row, token, numbers in zip(self.rare, self.rows, tokens, table[:, 1:], strict=True):
            if row.params.logprobs is not None and token != BROKEN:
                count = min(row.params.logprobs, most)
                best, values = numbers[1 : 1 + count], numbers[1 + most : 1 + most + count]
                pairs = zip(best.astype(np.int64).tolist(), values.tolist(), strict=True)
                found[s] = Sampled(token, float(numbers[0]), tuple(pairs))
        return found
