"""From files to a device: threads that read into pinned memory, and send what they have read.

A file in the page cache comes as fast as memory copies it; to a GPU as fast as its link, which several
threads together fill. Each asks for the interpreter twice a block, between two calls that leave it to others.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from irloom.ir.errors import CheckpointError

from .extents import Extent

BLOCK = 1 << 23
"""Bytes that are read at a time: those of all threads together should stay in the CPU's caches."""
THREADS = 12
SWITCH = 0.0005
"""Seconds after which a thread that computes in Python lets these go on."""


@dataclass(frozen=True)
class Copy:
    """Bytes of a file, and the byte of the device's memory where they begin."""

    source: Extent
    to: int


def transfer(copies: Sequence[Copy], memory: torch.Tensor, threads: int = THREADS) -> None:
    """Fill ``memory``, u8[n] on any device; ``CheckpointError`` for a file that ends too early.

    It returns when all bytes are there. Whoever had this memory on a GPU must be done with it: bytes come
    on streams of their own.
    """
    blocks = [block for c in copies for block in _blocks(c)]
    count = max(1, min(threads, os.cpu_count() or 1, len(blocks)))
    send = _to_gpu if memory.is_cuda else _to_host
    shared = iter(blocks)  # next() of a list's iterator is one step, whichever thread makes it
    with _let_in(), ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(send, shared, memory) for _ in range(count)]:
            done.result()


def stage() -> None:
    """Have the memory that ``transfer`` reads into pinned: torch keeps it for whoever asks for as much."""
    if torch.cuda.is_available():
        _ = [torch.empty(BLOCK, dtype=torch.uint8, pin_memory=True) for _ in range(THREADS)]


def _blocks(c: Copy) -> Iterator[Copy]:
    for start in range(0, c.source.nbytes, BLOCK):
        yield Copy(c.source.part(start, min(start + BLOCK, c.source.nbytes)), c.to + start)


def _to_host(blocks: Iterator[Copy], memory: torch.Tensor) -> None:
    with _Files() as files:
        view = memory.numpy().data
        for c in blocks:
            files.read(c.source, view[c.to : c.to + c.source.nbytes])


def _to_gpu(blocks: Iterator[Copy], memory: torch.Tensor) -> None:
    stage = torch.empty(BLOCK, dtype=torch.uint8, pin_memory=True)
    view = stage.numpy().data
    with _Files() as files, torch.cuda.stream(torch.cuda.Stream(memory.device)):
        for c in blocks:
            n = c.source.nbytes
            files.read(c.source, view[:n])
            memory[c.to : c.to + n].copy_(stage[:n])  # returns when they are there; others read meanwhile


@contextmanager
def _let_in() -> Iterator[None]:
    """Inside, threads that ask for the interpreter get it soon, whatever another computes."""
    before = sys.getswitchinterval()
    if before <= SWITCH:
        yield
        return
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class _Files(ExitStack):
    """The files that a thread reads, each opened once."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[Path, int] = {}

    def read(self, e: Extent, into: memoryview) -> None:
        """All bytes of an extent."""
        if e.path not in self._open:
            self._open[e.path] = os.open(e.path, os.O_RDONLY)
            self.callback(os.close, self._open[e.path])
        done = 0
        while done < e.nbytes:
            n = os.preadv(self._open[e.path], [into[done:]], e.start + done)
            if not n:
                raise CheckpointError(
                    f"{e.path}: {e.nbytes} bytes wanted at {e.start}, but the file ends at {e.start + done}",
                    hint="the file changed since the engine was opened",
                )
            done += n
