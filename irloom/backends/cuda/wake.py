"""What the first launch of a process waits for: a context on the GPU, and what Triton asks of itself.

Either takes tenths of a second in which no Python runs, so threads do it while the files of an engine are
looked through.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from ctypes import CDLL, byref, c_void_p
from functools import cache
from threading import Thread
from typing import Any


def wake(*more: Callable[[], None]) -> None:
    """Begin, and ``more``, each once a process. What fails says so where it is needed."""
    for begin in (_context, _triton, *more):
        _started(begin)


@cache
def _started(begin: Callable[[], None]) -> None:
    Thread(target=_quietly, args=(begin,), name=f"irloom {begin.__name__.strip('_')}").start()


def _quietly(begin: Callable[[], None]) -> None:
    with suppress(Exception):
        begin()


def _context() -> None:
    import torch

    if not torch.cuda.is_initialized():
        with suppress(OSError):
            _first_of(CDLL("libcuda.so.1"))
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")


def _first_of(driver: CDLL) -> None:
    """The context that torch will use, by the driver alone: torch has the interpreter wait as it begins."""
    context = c_void_p()
    if driver.cuInit(0) == 0:
        driver.cuDevicePrimaryCtxRetain(byref(context), 0)


def _triton() -> None:
    """Triton's driver and the version of its assembler, for which it runs programs, and a part of the name of
    every kernel in its cache: a hash of its compiler, which has 400 MB.
    """
    import torch
    from triton.compiler.compiler import make_backend
    from triton.runtime.cache import triton_key
    from triton.runtime.driver import driver

    if torch.cuda.is_available():
        active: Any = driver.active
        make_backend(active.get_current_target()).hash()
        triton_key()
