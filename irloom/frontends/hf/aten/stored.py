"""Ops on keys that come from a cache: what is computed of each cached token, is computed when it is stored.

Multi-head latent attention stores a latent and projects all cached ones to keys and values; others rotate or
scale what they read. Each is an op on single tokens, so it gives the same on this step's tokens before they
are stored, and the attention behind it reads a cache of what it gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from irloom.frontends.hf.aten.core import PAST, TOKENS, Stored, Translator
from irloom.frontends.hf.views import View
from irloom.ir.dims import Sym, symbols, without
from irloom.ir.errors import TraceError

READERS = ("irloom.attention.default",)
"""Ops that take a cache as a whole."""


def reads_cache(name: str, args: Iterable[Any]) -> bool:
    """Whether an op computes on what a cache holds, and does not attend to it."""
    return name not in READERS and any(isinstance(x, Stored) for x in _leaves(args))


def by_token(translator: Translator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The op on this step's tokens alone; what it gives is stored in place of what it took."""
    stored = next(x for x in _leaves((args, kwargs)) if isinstance(x, Stored))
    for x in _leaves((args, kwargs)):
        if isinstance(x, View) and any(str(TOKENS) in symbols(d) for d in x.dims):
            raise TraceError(
                f"the cache of layer {stored.layer} meets {x.value.type}, outside of attention",
                hint="only attention may compare a token with those before it",
            )
    out = translator(*_each(args, _own), **{k: _each(v, _own) for k, v in kwargs.items()})
    return _each(out, lambda x: Stored(x, stored.layer) if isinstance(x, View) else x)


def _own(x: Any) -> Any:
    """Of a cache or a size, what this step brings."""
    if isinstance(x, Stored):
        return x.view
    return without(x, str(PAST)) if isinstance(x, Sym) else x


def _each(x: Any, change: Callable[[Any], Any]) -> Any:
    return type(x)(_each(y, change) for y in x) if isinstance(x, list | tuple) else change(x)


def _leaves(x: Any) -> Iterator[Any]:
    match x:
        case list() | tuple():
            for y in x:
                yield from _leaves(y)
        case dict():
            yield from _leaves(list(x.values()))
        case _:
            yield x
