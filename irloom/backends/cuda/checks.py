"""Weights are checked where they lie on the device: files are read once, and the many lanes of a GPU hash.

What is not there (headers of files), or not as the kernel takes it, is hashed from the files.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext

import torch

from irloom.backends.artifact import EngineReader
from irloom.backends.digests import Extent, hashed, joined, pieces

from .kernels.sha256 import ALIGN, BLOCK, Sha256
from .transfer import Copy


def check(
    engine: EngineReader, copies: Mapping[str, Sequence[Copy]], memory: torch.Tensor, filled: Future[None]
) -> None:
    """Check what of an engine is unchecked, once ``memory`` is ``filled`` with the ``copies`` of each part
    and link; ``EngineMismatch`` where a byte was changed.

    Everything but the hashing itself is done before that.
    """
    cut = {name: pieces(engine.extent(name)) for name in list(engine.unchecked)}
    each = [piece for of_one in cut.values() for piece in of_one]
    at = [to for name, of_one in cut.items() for to in places(of_one, copies.get(name, ()))]
    from_files = [i for i, to in enumerate(at) if to is None]
    found = dict(zip(from_files, hashed([each[i] for i in from_files]), strict=True))
    on_device = {i: to for i, to in enumerate(at) if to is not None}
    with _stream(memory.device):
        sizes = [each[i].stop - each[i].start for i in on_device]
        sha256 = Sha256(memory, list(on_device.values()), sizes) if sizes else None
        filled.result()
        found.update(zip(on_device, sha256() if sha256 else (), strict=True))
    digests = iter([found[i] for i in range(len(each))])
    engine.compare({name: joined([next(digests) for _ in of_one]) for name, of_one in cut.items()})


def places(cut: Sequence[Extent], copies: Sequence[Copy]) -> list[int | None]:
    """Where in memory each piece of a file begins; None where it is not, or not as the kernel takes it."""
    copies = sorted(copies, key=lambda c: (c.source.start, c.source.nbytes))
    starts = [c.source.start for c in copies]
    stops = [c.source.start + c.source.nbytes for c in copies]
    assert all(stop <= after for stop, after in zip(stops, starts[1:], strict=False)), "bytes are there twice"

    def place(piece: Extent) -> int | None:
        i, size = bisect(starts, piece.start) - 1, piece.stop - piece.start
        if i < 0 or piece.stop > stops[i] or not size or size % BLOCK:
            return None
        to = copies[i].to + piece.start - starts[i]
        return None if to % ALIGN else to

    return [place(piece) for piece in cut]


def once(device: torch.device) -> None:
    """Hash a little, as a build does so that opening its engine compiles nothing."""
    Sha256(torch.zeros(BLOCK, dtype=torch.uint8, device=device), [0], [BLOCK])()


def _stream(device: torch.device) -> AbstractContextManager[object]:
    """Beside what else is queued."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()
