"""What the host says of a step, copied beside the one before; and what it hears, which a kernel writes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import torch

from irloom.ir.plan import Pool
from irloom.runtime.core import DRAW, Batch, Ints

from .answers import Sent
from .buckets import Bucket
from .kernels.exchange import TABLE, arrive, leave
from .step import Step

ALIGN = 64
"""Entries of i32 from one array to the next: 256 bytes."""
WIDTH = 16
"""A page table has a multiple of so many columns, so that kernels are the same for any."""
WORDS = DRAW.itemsize // 4
STEPS = 3
"""Steps that the host has memory for: of the one that it writes, the one that runs, and the one before."""

Place = tuple[str, int, int, tuple[int, ...]]
"""An array's name, first entry, entries and dims."""


class StepArrays:
    """The arrays of steps up to the bucket ``most``: where kernels find them, and the host's copies.

    A step is ``load``ed, which queues a copy on a stream of its own, then ``arrive`` and ``leave`` are queued
    as its first and last kernels, in a graph or not; then it is ``sent``. One that is not, whatever broke it
    off, is settled as the next is loaded.
    """

    def __init__(
        self, pools: Sequence[Pool], most: Bucket, max_context: int, device: torch.device | str
    ) -> None:
        self.device = torch.device(device)
        pages = {p.name: -(-max_context // p.page) for p in pools}
        self.widths = {name: -(-n // WIDTH) * WIDTH for name, n in pages.items()}
        self.layout = cache(self._layout)
        size = self.layout(most)[1]
        self.block = torch.zeros(size, dtype=torch.int32, device=self.device)
        self.turns = torch.zeros(2, dtype=torch.int32, device=self.device)
        pinned = self.device.type == "cuda"
        self.written = torch.zeros((STEPS, size), dtype=torch.int32, pin_memory=pinned)
        self.posted = torch.zeros_like(self.written, device=self.device) if pinned else self.written
        self.told = torch.zeros((STEPS, most.seqs), dtype=torch.int32, pin_memory=pinned)
        self.turn, self._open = 0, False
        self._arrays: Ints = self.written.numpy()
        self._copies = torch.cuda.Stream(self.device) if pinned else None
        self._done = [torch.cuda.Event() for _ in range(STEPS)] if pinned else None
        if self._copies is not None and self._done is not None:
            self._copies.wait_stream(torch.cuda.current_stream(self.device))  # which fills what it writes to
            held = self.written, self.posted, self.told
            weakref.finalize(self, _hold, self._copies, self._done, *held).atexit = False

    def there(self, bucket: Bucket) -> tuple[Step, torch.Tensor]:
        """A step of this size where it lies on the device; and its draws, i32 [seqs, 8], as words of
        ``runtime.core.DRAW``.
        """
        at = {
            name: self.block[start : start + count].view(dims)
            for name, start, count, dims in self.layout(bucket)[0]
        }
        tables = {name: at[f"table {name}"] for name in self.widths}
        step = Step(
            at["ids"], at["positions"], at["owner"], at["starts"], at["context"], tables, bucket.decode
        )
        return step, at["draws"]

    def load(self, batch: Batch, bucket: Bucket) -> None:
        """Bring a step where the device will look for it, once it has done with what was there."""
        if self._open:
            self.settle()
        self._open = True
        if self._done is not None:
            self._done[self.turn].synchronize()
        places, end = self.layout(bucket)
        array = self._arrays[self.turn]
        at = {name: array[start : start + count].reshape(dims) for name, start, count, dims in places}
        self._write(at, batch)
        starts = {name: start for name, start, _, _ in places}
        used: list[tuple[int, int]] = []
        for i, (name, table) in enumerate(zip(self.widths, batch.tables, strict=True)):
            start = starts[f"table {name}"]
            at["tables"][i] = start, self.widths[name], table.shape[1], len(batch.context)
            used.append((start, start + table.size))
        self._copy((0, used[0][1]) if used else (0, end), *used[1:])

    def _copy(self, *parts: tuple[int, int]) -> None:
        """Queue that entries go to the device, from each first to an end, beside what it does; what is queued
        from now on waits for them.
        """
        if self._copies is not None:
            with torch.cuda.stream(self._copies):
                for first, end in parts:
                    part = self.written[self.turn, first:end]
                    self.posted[self.turn, first:end].copy_(part, non_blocking=True)
            torch.cuda.current_stream(self.device).wait_stream(self._copies)

    def arrive(self, bucket: Bucket, chosen: torch.Tensor) -> None:
        """Queue that the device reads a step; ``chosen`` i32 [S] are the tokens of the step before."""
        first = {name: start for name, start, _, _ in self.layout(bucket)[0]}
        front = min((first[f"table {name}"] for name in self.widths), default=self.layout(bucket)[1])
        arrive(
            self.block,
            self.posted,
            self.turns,
            chosen,
            front=front,
            ids=first["ids"],
            late=first["late"],
            tokens=bucket.tokens,
            tables=len(self.widths),
            entries=bucket.seqs * max(self.widths.values(), default=0),
        )

    def leave(self, chosen: torch.Tensor) -> None:
        """Queue that the device tells what it has chosen, i32 [S]."""
        leave(self.told, self.turns, chosen)

    def sent(self) -> None:
        """The step that was loaded last is queued."""
        self._record(self.turn)
        self.turn = (self.turn + 1) % STEPS
        self._open = False

    def answer(self, count: int, instead: torch.Tensor | None = None) -> Sent:
        """The tokens of the first ``count`` sequences of the step that was sent last, or others that came
        ``instead``, i32 [S] on the device. Their memory is used again ``STEPS`` steps later.
        """
        last = (self.turn - 1) % STEPS
        tokens = self.told[last, :count]
        if instead is not None:
            tokens.copy_(instead[:count], non_blocking=True)
            self._record(last)
        return Sent(tokens, None if self._done is None else self._done[last])

    def settle(self) -> None:
        """Have the device look where the host writes next, and the host wait until it does: where it is not
        known whether all kernels of the steps before have been queued.
        """
        self.turns.fill_(self.turn)
        self._record(self.turn)

    def _record(self, turn: int) -> None:
        if self._done is not None:
            self._done[turn] = torch.cuda.Event()
            self._done[turn].record()

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
            at[f"table {name}"].reshape(-1)[: table.size] = table.reshape(-1)

    def _layout(self, bucket: Bucket) -> tuple[list[Place], int]:
        """The place of each array of a bucket, and where all end."""
        out: list[Place] = []
        end = 0
        for name, dims in self._arrays_of(bucket):
            count = int(np.prod(dims))
            out.append((name, end, count, dims))
            end += -(-count // ALIGN) * ALIGN
        return out, end

    def _arrays_of(self, b: Bucket) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "tables", (len(self.widths), TABLE)
        yield from ((name, (b.tokens,)) for name in ("ids", "positions", "owner", "late"))
        yield "starts", (b.seqs + 1,)
        yield "context", (b.seqs,)
        yield "draws", (b.seqs, WORDS)
        yield from ((f"table {name}", (b.seqs, width)) for name, width in self.widths.items())


def _hold(copies: torch.cuda.Stream, done: Sequence[torch.cuda.Event], *memory: torch.Tensor) -> None:
    """Keep memory until copies and kernels that read and write it are ``done``: torch knows of no use of it,
    and gives it to whoever asks next.
    """
    copies.synchronize()
    for event in done:
        event.synchronize()
