"""What kernels know of a step: its tokens and sequences, at fixed places on the device.

Sizes are those of a *bucket*, which a step is filled up to. Of ``tokens`` rows and ``seqs`` sequences only
the first are real, how many is read on the device: sequence ``s`` has the rows ``starts[s]`` to
``starts[s + 1] - 1``, none where it only fills the bucket, and rows from ``starts[seqs]`` on belong to nobody
(``owner`` is -1). Kernels may compute such rows, but write nothing of them into caches and read no index from
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Step:
    """All arrays i32. ``ids``, ``positions``, ``owner`` [tokens]: each token, where it stands in its
    sequence, and which that is; ``starts`` [seqs + 1]; ``context`` [seqs], keys of each sequence with this
    step's, 0 where it fills up; ``tables`` per pool [seqs, pages of the longest sequence]: page ids, as in
    ``runtime.core.Batch``. With ``decode`` every sequence brings one token: row ``s`` is sequence ``s``.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    owner: torch.Tensor
    starts: torch.Tensor
    context: torch.Tensor
    tables: dict[str, torch.Tensor]
    decode: bool = False

    @property
    def tokens(self) -> int:
        """Rows of the bucket."""
        return len(self.ids)

    @property
    def seqs(self) -> int:
        """Sequences of the bucket."""
        return len(self.context)

    @property
    def real(self) -> torch.Tensor:
        """How many rows are real, on the device: i32 [1]."""
        return self.starts[self.seqs :]


def real_rows(step: Step | None, rows: int) -> torch.Tensor | None:
    """Where it says how many of ``rows`` are real, if they are the tokens of a step; None where all are."""
    return step.real if step is not None and step.tokens == rows else None
