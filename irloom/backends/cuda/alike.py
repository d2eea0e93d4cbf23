"""The batch-invariant setting: every row is computed one way, whatever else is in its step.

How a kernel is cut decides in which order it adds, and so the last bits of a result. For speed the cut is
chosen for the number of rows, of sequences, and of keys. Inside of ``rows_alike`` it is not: products have
one tile for any number of rows and no split sum, attention goes over a row's keys in whole blocks from the
first one on, recurrences go token by token. A request's greedy text is then the same alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ALIKE = ContextVar("alike", default=False)


def alike() -> bool:
    """Whether what is launched now must not depend on the rest of its step."""
    return _ALIKE.get()


@contextmanager
def rows_alike(on: bool = True) -> Iterator[None]:
    """Launches inside are batch-invariant, if ``on``.

    >>> with rows_alike():
    ...     alike()
    True
    >>> alike()
    False
    """
    token = _ALIKE.set(on)
    try:
        yield
    finally:
        _ALIKE.reset(token)
