"""SHA-256 of parts of files, by all cores: of more than a piece, that of the digests of its pieces.

Digests that were worked out are remembered with what the system says of the file, for builds alone: one that
is out of date makes an engine that does not open.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from irloom.backends.machine import cores

Extent = tuple[Path, int, int]
"""Bytes of a file: where they start, and where they end."""
PIECE = 1 << 24
"""Bytes that are hashed as one."""
_THREADS = 32
"""More hash no faster than memory is read, and each holds a piece."""


def digests(extents: Sequence[Extent]) -> list[str]:
    """The digest of each, in hex; pieces of all are hashed side by side.

    A thread reads a whole piece at once, and hashes it at once: it seldom asks for the interpreter, so that
    one who opens an engine meanwhile hardly waits for it.
    """
    pieces = [piece for extent in extents for piece in _pieces(extent)]
    found = [b""] * len(pieces)
    shared = iter(enumerate(pieces))  # next() of it is one step, whichever thread makes it
    longest = max((stop - start for _, start, stop in pieces), default=0)

    def some() -> None:
        block = memoryview(bytearray(longest))
        for i, piece in shared:
            found[i] = _digest(piece, block)

    count = min(cores(), _THREADS, len(pieces))
    with ThreadPoolExecutor(max(1, count)) as pool:
        for done in [pool.submit(some) for _ in range(count)]:
            done.result()
    left = iter(found)
    return [_joined([next(left) for _ in _pieces(extent)]) for extent in extents]


def remembered_digests(extents: Sequence[Extent]) -> list[str]:
    """The same; what was hashed before, of a file that is as it was then, is not hashed again."""
    files = {path: _Known.of(path) for path, _, _ in extents}
    new = [x for x in dict.fromkeys(extents) if files[x[0]].get(x) is None]
    for extent, digest in zip(new, digests(new), strict=True):
        files[extent[0]].ranges[_range(extent)] = digest
    for path in {x[0] for x in new}:
        files[path].keep()
    return [files[x[0]].ranges[_range(x)] for x in extents]


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
    return f"{extent[1]}-{extent[2]}"


def _pieces(extent: Extent) -> Iterator[Extent]:
    """Parts of ``PIECE`` bytes, and what is left over; of no bytes, those."""
    path, start, stop = extent
    yield from ((path, at, min(at + PIECE, stop)) for at in range(start, max(stop, start + 1), PIECE))


def _joined(found: Sequence[bytes]) -> str:
    """The digest of what has one piece is that of the piece."""
    return (found[0] if len(found) == 1 else hashlib.sha256(b"".join(found)).digest()).hex()


def _digest(extent: Extent, block: memoryview) -> bytes:
    """Of what a file has of it: a file may have become shorter."""
    path, start, stop = extent
    done, size = 0, max(stop - start, 0)
    with path.open("rb", buffering=0) as f:
        f.seek(start)
        while done < size and (n := f.readinto(block[done:size])):
            done += n
    return hashlib.sha256(block[:done]).digest()
