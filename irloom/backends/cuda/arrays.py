"""What the host says of a step, brought to the device in one copy, at fixed addresses for each bucket."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from irloom.ir.plan import Pool
from irloom.runtime.core import DRAW, Batch, Ints

from .buckets import Bucket
from .step import Step

ALIGN = 64
"""Entries of i32 from one array to the next: 256 bytes."""
WORDS = DRAW.itemsize // 4
AHEAD = 3
"""Steps whose arrays the host may have written while the device still copies them."""


@dataclass(frozen=True)
class Arrived:
    """A step on the device: beside what kernels know of it, ``late`` and ``draws`` of ``runtime.core.Batch``.

    ``late`` is i32 [tokens], -1 in rows that fill up; ``draws`` i32 [seqs, 8], entries of ``DRAW`` as words.
    """

    step: Step
    late: torch.Tensor
    draws: torch.Tensor


class StepArrays:
    """Room for the arrays of steps up to the bucket ``most``."""

    def __init__(
        self, pools: Sequence[Pool], most: Bucket, max_context: int, device: torch.device | str
    ) -> None:
        self.device = torch.device(device)
        self.widths = {p.name: -(-max_context // p.page) for p in pools}
        self.layout = cache(self._layout)
        size = self.layout(most)[1]
        pinned = self.device.type == "cuda"
        self.block = torch.zeros(size, dtype=torch.int32, device=self.device)
        self.hosts = deque(Staging(size, pinned) for _ in range(AHEAD if pinned else 1))

    def there(self, bucket: Bucket) -> Arrived:
        """The arrays of a bucket, where they lie on the device."""
        at = {
            name: self.block[start : start + count].view(dims)
            for name, start, count, dims in self.layout(bucket)[0]
        }
        tables = {name: at[f"table {name}"] for name in self.widths}
        step = Step(
            at["ids"], at["positions"], at["owner"], at["starts"], at["context"], tables, bucket.decode
        )
        return Arrived(step, at["late"], at["draws"])

    def load(self, batch: Batch, bucket: Bucket) -> None:
        """Bring a step there; what the host wrote is copied by the device in its own time."""
        host = self.hosts[0]
        self.hosts.rotate(-1)
        host.wait()
        places, end = self.layout(bucket)
        at = {name: host.array[start : start + count].reshape(dims) for name, start, count, dims in places}
        self._write(at, batch)
        self.block[:end].copy_(host.tensor[:end], non_blocking=True)
        host.sent()

    def _write(self, at: dict[str, Ints], batch: Batch) -> None:
        tokens, seqs = len(batch.tokens), len(batch.context)
        at["ids"][:tokens], at["positions"][:tokens] = batch.tokens, batch.positions
        at["ids"][tokens:] = at["positions"][tokens:] = 0
        at["owner"][:tokens] = np.repeat(np.arange(seqs, dtype=np.int32), np.diff(batch.starts))
        at["owner"][tokens:] = -1
        at["late"][: len(batch.late)], at["late"][len(batch.late) :] = batch.late, -1
        at["draws"][: len(batch.draws)] = batch.draws.view(np.int32).reshape(-1, WORDS)
        at["draws"][len(batch.draws) :] = 0
        at["starts"][: seqs + 1], at["starts"][seqs + 1 :] = batch.starts, tokens
        at["context"][:seqs], at["context"][seqs:] = batch.context, 0
        for name, table in zip(self.widths, batch.tables, strict=True):
            at[f"table {name}"][:seqs, : table.shape[1]] = table

    def _layout(self, bucket: Bucket) -> tuple[list[tuple[str, int, int, tuple[int, ...]]], int]:
        """Each array of a bucket: its name, first entry, entries and dims; and where all end."""
        out: list[tuple[str, int, int, tuple[int, ...]]] = []
        end = 0
        for name, dims in self._arrays(bucket):
            count = int(np.prod(dims))
            out.append((name, end, count, dims))
            end += -(-count // ALIGN) * ALIGN
        return out, end

    def _arrays(self, b: Bucket) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((name, (b.tokens,)) for name in ("ids", "positions", "owner", "late"))
        yield "starts", (b.seqs + 1,)
        yield "context", (b.seqs,)
        yield "draws", (b.seqs, WORDS)
        yield from ((f"table {name}", (b.seqs, width)) for name, width in self.widths.items())


class Staging:
    """Memory of the host that the device copies from."""

    def __init__(self, size: int, pinned: bool) -> None:
        self.tensor = torch.zeros(size, dtype=torch.int32, pin_memory=pinned)
        self.array: Ints = self.tensor.numpy()
        self.event = torch.cuda.Event() if pinned else None

    def wait(self) -> None:
        """Until the device has copied what was written last."""
        if self.event is not None:
            self.event.synchronize()

    def sent(self) -> None:
        """The device has been asked to copy."""
        if self.event is not None:
            self.event.record()
