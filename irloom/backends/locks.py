"""Files that one process at a time holds: what two builds want at once is built by one of them."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(file: Path, wait: bool = True, waiting: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold ``file`` against other processes; False where it is held and this does not ``wait``.

    ``waiting`` is called where it is held, before this waits. The system lets go of the file when this
    process ends, however it ends. The file stays.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                yield False
                return
            waiting()
            fcntl.flock(held, fcntl.LOCK_EX)
        yield True
