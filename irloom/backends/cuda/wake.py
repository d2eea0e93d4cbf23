"""What the first launch of a process waits for: a context on the GPU, and what Triton asks of itself.

Either takes tenths of a second in which little Python runs, so threads do it while the files of an engine are
looked through.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from ctypes import CDLL, byref, c_void_p
from importlib import import_module
from threading import Thread
from typing import Any

DRIVER = "libcuda.so.1"
"""NVIDIA's library that is there wherever a GPU can be used."""

_BEGUN: dict[Callable[[], None], Thread] = {}
"""What has been begun in this process."""


def wake(*more: Callable[[], None]) -> None:
    """Begin, and ``more`` once the GPU can be asked, each once a process; nothing where there is no driver.
    What fails says so where it is needed.

    Triton is imported before: threads that begin with different parts of a package wait for each other.
    """
    try:
        CDLL(DRIVER)
    except OSError:
        return
    _begin(_context)
    with suppress(Exception):
        import_module("triton")
    _begin(_compiler)
    for begin in (_driver, *more):
        _begin(begin, behind=_BEGUN[_context])


def awake() -> None:
    """Wait until all that was begun is done: who needs a part of it before would do it once more."""
    for thread in list(_BEGUN.values()):
        thread.join()


def _begin(begin: Callable[[], None], behind: Thread | None = None) -> None:
    if begin not in _BEGUN:
        name = f"irloom {begin.__name__.strip('_')}"
        _BEGUN[begin] = Thread(target=_quietly, args=(begin, behind), name=name)
        _BEGUN[begin].start()


def _quietly(begin: Callable[[], None], behind: Thread | None) -> None:
    if behind is not None:
        behind.join()
    with suppress(Exception):
        begin()


def _context() -> None:
    import torch

    if not torch.cuda.is_initialized():
        _first_of(CDLL(DRIVER))
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")


def _first_of(driver: CDLL) -> None:
    """The context that torch will use, by the driver alone: torch has the interpreter wait as it begins, and
    as it is asked for GPUs before.
    """
    context = c_void_p()
    if driver.cuInit(0) == 0:
        driver.cuDevicePrimaryCtxRetain(byref(context), 0)


def _compiler() -> None:
    """A part of the name of every kernel in Triton's cache: a hash of its compiler, which has 400 MB."""
    from triton.runtime.cache import triton_key

    triton_key()


def _driver() -> None:
    """Triton's driver and the version of its assembler, for which it runs programs."""
    import torch
    from triton.compiler.compiler import make_backend
    from triton.runtime.driver import driver

    if torch.cuda.is_available():
        active: Any = driver.active
        make_backend(active.get_current_target()).hash()
