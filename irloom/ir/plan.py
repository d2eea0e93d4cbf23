"""What a model needs at run time, decided before anything is built: the pools its caches live in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pool:
    """One set of pages that every cache of the same shape shares: a page id indexes all of those caches.

    ``page`` is in tokens, ``page_bytes`` counts keys and values of one page over all caches of the pool. With
    a ``window`` a token at position ``p`` reads positions ``p - window + 1`` to ``p`` and pages before that
    are given back; ``None`` reads everything.
    """

    name: str
    window: int | None
    page: int
    page_bytes: int
    pages: int
