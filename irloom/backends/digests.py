"""SHA-256 of parts of files, by all cores: of more than a piece, that of the digests of its pieces.

Pieces are so small because a GPU hashes those of an engine's weights side by side, one a lane. Digests that
were worked out are remembered with what the system says of the file, for builds alone: one that is out of
date makes an engine that does not open.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from irloom.backends.machine import cores

PIECE = 1 << 20
"""Bytes that are hashed as one."""
READ = 1 << 24
"""Bytes that a thread reads at a time."""
_THREADS = 32
"""More hash no faster than memory is read, and each holds what it has read."""


class Extent(NamedTuple):
    """Bytes of a file: where they start, and where they end; pieces begin anew at each of ``cuts``."""

    path: Path
    start: int
    stop: int
    cuts: tuple[int, ...] = ()


def digests(extents: Sequence[Extent]) -> list[str]:
    """The digest of each, in hex; pieces of all are hashed side by side."""
    each = [pieces(extent) for extent in extents]
    found = iter(hashed([piece for of_one in each for piece in of_one]))
    return [joined([next(found) for _ in of_one]) for of_one in each]


def pieces(extent: Extent) -> list[Extent]:
    """Parts of ``PIECE`` bytes, and what is left over in front of a cut and of the end; of no bytes, those.

    >>> half = PIECE // 2
    >>> [(p.start // half, p.stop // half) for p in pieces(Extent(Path("a"), 0, 6 * half, (3 * half,)))]
    [(0, 2), (2, 3), (3, 5), (5, 6)]
    """
    path, start, stop, cuts = extent
    runs = [run for run in pairwise([start, *cuts, stop]) if run[0] < run[1]]
    found = [Extent(path, at, min(at + PIECE, end)) for begin, end in runs for at in range(begin, end, PIECE)]
    return found or [Extent(path, start, stop)]


def joined(found: Sequence[bytes]) -> str:
    """The digest of what has these pieces, in hex: of one piece, it is that of the piece."""
    return (found[0] if len(found) == 1 else hashlib.sha256(b"".join(found)).digest()).hex()


def hashed(pieces: Sequence[Extent]) -> list[bytes]:
    """The digest of each piece.

    A thread reads pieces that lie behind each other at once: it seldom asks for the interpreter, and others
    hardly wait for it.
    """
    found, reads = [b""] * len(pieces), list(_reads(pieces))
    shared = iter(reads)  # next() of it is one step, whichever thread makes it
    longest = max((pieces[r[-1]].stop - pieces[r[0]].start for r in reads), default=0)

    def some() -> None:
        block = memoryview(bytearray(longest))
        for read in shared:
            first, last = pieces[read[0]], pieces[read[-1]]
            there = _filled(first._replace(stop=last.stop), block)
            for i in read:
                a, b = (at - first.start for at in pieces[i][1:3])
                found[i] = hashlib.sha256(there[a:b]).digest()

    count = min(cores(), _THREADS, len(reads))
    with ThreadPoolExecutor(max(1, count)) as pool:
        for done in [pool.submit(some) for _ in range(count)]:
            done.result()
    return found


def remembered_digests(extents: Sequence[Extent]) -> list[str]:
    """The same as ``digests``; what was hashed before, of a file that is as it was then, is not again."""
    files = {x.path: _Known.of(x.path) for x in extents}
    new = [x for x in dict.fromkeys(extents) if files[x.path].get(x) is None]
    for extent, digest in zip(new, digests(new), strict=True):
        files[extent.path].ranges[_range(extent)] = digest
    for path in {x.path for x in new}:
        files[path].keep()
    return [files[x.path].ranges[_range(x)] for x in extents]


class _Known:
    """Digests of ranges of one file, as long as it is what it was."""

    def __init__(self, place: Path, stat: list[int], ranges: dict[str, str]) -> None:
        self.place, self.stat, self.ranges = place, stat, ranges

    @classmethod
    def of(cls, path: Path) -> _Known:
        """What is remembered of a file."""
        s = path.stat()
        stat = [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns]
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        place = home / "irloom" / "digests" / f"{name}.json"
        try:
            before = json.loads(place.read_text())
            ranges = dict(before["ranges"]) if before["stat"] == [PIECE, *stat] else {}
        except (OSError, ValueError, KeyError, TypeError):
            ranges = {}
        return cls(place, [PIECE, *stat], ranges)

    def get(self, extent: Extent) -> str | None:
        return self.ranges.get(_range(extent))

    def keep(self) -> None:
        """Remember them after this process, where the folder can be written."""
        with suppress(OSError):
            self.place.parent.mkdir(parents=True, exist_ok=True)
            part = self.place.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps({"stat": self.stat, "ranges": self.ranges}))
            part.replace(self.place)


def _range(extent: Extent) -> str:
    return "-".join(map(str, [extent.start, *extent.cuts, extent.stop]))


def _reads(pieces: Sequence[Extent]) -> Iterator[range]:
    """Which pieces are read at once: neighbours of a file, ``READ`` bytes together or one."""
    first = 0
    for i, (path, _, stop, _) in enumerate(pieces):
        follows = i + 1 < len(pieces) and pieces[i + 1][:2] == (path, stop)
        if not follows or pieces[i + 1].stop - pieces[first].start > READ:
            yield range(first, i + 1)
            first = i + 1


def _filled(extent: Extent, block: memoryview) -> memoryview:
    """What a file has of it, in ``block``: a file may have become shorter."""
    done, size = 0, max(extent.stop - extent.start, 0)
    with extent.path.open("rb", buffering=0) as f:
        f.seek(extent.start)
        while done < size and (n := f.readinto(block[done:size])):
            done += n
    return block[:done]
