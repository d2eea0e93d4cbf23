"""What the first launch of a process waits for: a context on the GPU, and the name that Triton gives itself.

Either takes tenths of a second in which no Python runs, so threads do it while the files of an engine are
looked through.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from threading import Thread


def wake(*more: Callable[[], None]) -> None:
    """Begin, and ``more``, each once a process. What fails says so where it is needed."""
    for begin in (_context, _name_of_triton, *more):
        _started(begin)


@cache
def _started(begin: Callable[[], None]) -> None:
    Thread(target=_quietly, args=(begin,), name=f"irloom {begin.__name__.strip('_')}").start()


def _quietly(begin: Callable[[], None]) -> None:
    with suppress(Exception):
        begin()


def _context() -> None:
    import torch

    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")


def _name_of_triton() -> None:
    """A part of the name of every kernel in its cache: a hash of its compiler, which has 400 MB."""
    import torch
    from triton.runtime.cache import triton_key

    if torch.cuda.is_available():
        triton_key()
