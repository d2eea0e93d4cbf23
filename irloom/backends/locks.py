"""Files that one process at a time holds: what two builds want at once is built by one of them."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(file: Path, wait: bool = True) -> Iterator[bool]:
    """Hold ``file`` against other processes; False where it is held and this does not ``wait``.

    The system lets go of it when this process ends, however it ends. The file stays.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
