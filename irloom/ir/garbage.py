"""When garbage is not to be collected: as modules are imported, programs rewritten, or graphs captured."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager
from threading import Lock


class _Held:
    """The collector is the process's: who enters first switches it off, who leaves last switches it on."""

    def __init__(self) -> None:
        self.lock, self.count, self.was = Lock(), 0, False

    def enter(self) -> None:
        with self.lock:
            if not self.count:
                self.was = gc.isenabled()
                gc.disable()
            self.count += 1

    def leave(self) -> None:
        with self.lock:
            self.count -= 1
            if not self.count and self.was:
                gc.enable()


_held = _Held()


@contextmanager
def uncollected() -> Generator[None]:
    """Inside, garbage waits, in whichever thread it is made, and whoever else enters or leaves meanwhile.

    >>> with uncollected():
    ...     gc.isenabled()
    False
    >>> gc.isenabled()
    True
    """
    _held.enter()
    try:
        yield
    finally:
        _held.leave()
