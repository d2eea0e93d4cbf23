"""Names of kernels in Triton's cache that do not depend on what was launched before.

Triton names a function by its source, by the names of those that it calls, and by the constants that all of
them use; but of a function that it calls it knows the constants only if that one has a name already. So one
that is named first of all, and one that is named behind what it calls, had two names, and an engine would
compile again what its build had compiled in another order. Here the innermost are named first.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from typing import Any

from triton.runtime.jit import JITFunction


def in_order(made: Any) -> Any:
    """The same function of Triton's, named behind those that it calls."""
    if isinstance(made, JITFunction):  # not in the interpreter
        made.__class__ = _in_order(type(made))
    return made


@cache
def _in_order(kind: type[Any]) -> type[Any]:
    class InOrder(kind):
        @property
        def cache_key(self) -> str:
            if self.hash is None:
                for f in _called(self):
                    _ = f.cache_key
            return super().cache_key

    return InOrder


def _called(made: Any) -> Iterator[Any]:
    """The functions of Triton's that its code names, by themselves or in a module."""
    seen = made.fn.__globals__
    for node in ast.walk(made.parse()):
        match node:
            case ast.Name(id):
                found = seen.get(id)
            case ast.Attribute(ast.Name(module), name):
                found = getattr(seen.get(module), name, None)
            case _:
                continue
        if isinstance(found, JITFunction) and found is not made:
            yield found
