"""Replacements of blocks that cannot be traced as they are written: the same result, in other words.

A block whose code depends on data (a loop over the experts in use, or over time) is replaced for the length
of a capture. What is replaced is the smallest block there is, known by the name of its class; whether a model
has it is seen from its modules. The check of every import against the library holds for replacements, too.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import nn

from irloom.frontends.store import takes_part
from irloom.ir.errors import TraceError

Method = Callable[..., Any]
Where = Callable[[nn.Module], bool]


def _everywhere(_: nn.Module) -> bool:
    return True


@dataclass(frozen=True)
class Replacement:
    """What takes the place of ``method`` in modules of the class ``block`` for which ``where`` holds."""

    block: str
    method: str
    by: Method
    where: Where

    @property
    def place(self) -> str:
        """Where it is written."""
        code: Any = self.by.__code__
        return f"{code.co_filename}:{code.co_firstlineno}"


REPLACEMENTS: dict[tuple[str, str], Replacement] = {}
"""Replacement by class name and method name."""


def replaces(*blocks: str, method: str = "forward", where: Where = _everywhere) -> Callable[[Method], Method]:
    """Register a function for the classes ``blocks``; it takes the module, then what the method takes.

    ``where`` asks a module of the class whether it is meant, as when releases of a library differ in it.
    """

    def wrap(fn: Method) -> Method:
        for block in blocks:
            new = Replacement(block, method, fn, where)
            if old := REPLACEMENTS.get((block, method)):
                raise TraceError(f"`{block}.{method}` is replaced twice: in {old.place} and in {new.place}")
            REPLACEMENTS[block, method] = new
        takes_part(fn)
        return fn

    return wrap


@contextlib.contextmanager
def replaced_blocks(model: nn.Module) -> Iterator[None]:
    """Within, the modules of ``model`` whose class has a replacement compute with it."""
    by_class: dict[str, list[Replacement]] = {}
    for new in REPLACEMENTS.values():
        by_class.setdefault(new.block, []).append(new)
    swapped = [
        (m, new) for m in model.modules() for new in by_class.get(type(m).__name__, []) if new.where(m)
    ]
    try:
        for module, new in swapped:
            module.__dict__[new.method] = MethodType(new.by, module)
        yield
    finally:
        for module, new in swapped:
            module.__dict__.pop(new.method, None)


def library_of(block: nn.Module) -> Any:
    """The library's module that has a block's class, and the functions beside it."""
    return sys.modules[type(block).__module__]
