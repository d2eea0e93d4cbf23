"""The sizes that steps are filled up to, so that few graphs serve all steps.

They are the same whatever an engine's limits are, but for how many there are: so a build that has run steps
of all sizes has compiled what any engine of smaller limits launches.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Bucket:
    """Rows and sequences of a step as its kernels see it; with ``decode`` each sequence brings one token."""

    tokens: int
    seqs: int
    decode: bool


class Buckets:
    """Sizes until they hold ``max_tokens`` and ``max_seqs``. With ``exact`` a step is as large as it is.

    >>> buckets = Buckets(2048, 256)
    >>> buckets.of(3, 3), buckets.of(70, 70).seqs, buckets.of(700, 5)
    (Bucket(tokens=4, seqs=4, decode=True), 72, Bucket(tokens=768, seqs=8, decode=False))
    """

    def __init__(self, max_tokens: int, max_seqs: int, *, exact: bool = False) -> None:
        self.exact, self._most = exact, Bucket(max_tokens, max_seqs, False)
        self.decodes = [*_until(max_seqs, _fine())]
        self.tokens = [*_until(max_tokens, _coarse())]
        self.seqs = [*_until(max_seqs, _beside())]

    @property
    def largest(self) -> Bucket:
        """What holds every bucket."""
        if self.exact:
            return self._most
        tokens, seqs = max(self.tokens[-1], self.decodes[-1]), max(self.seqs[-1], self.decodes[-1])
        return Bucket(tokens, seqs, False)

    def of(self, tokens: int, seqs: int) -> Bucket:
        """The bucket of a step."""
        decode = tokens == seqs
        if self.exact:
            return Bucket(tokens, seqs, decode)
        if decode:
            size = _at_least(self.decodes, seqs)
            return Bucket(size, size, True)
        return Bucket(_at_least(self.tokens, tokens), _at_least(self.seqs, seqs), False)


def _fine() -> Iterator[int]:
    """1, 2, 4, then eights to 256, then 32 apart: at most an eighth is filled up past 64."""
    yield from (1, 2, 4)
    yield from range(8, 256, 8)
    size = 256
    while True:
        yield size
        size += 32


def _coarse() -> Iterator[int]:
    """Each power of two, and sizes in between: the longer a step, the smaller the part of it to fill up."""
    size = 16
    while True:
        between = 2 if size < 256 else 4 if size < 1024 else 8
        yield from range(size, 2 * size, size // between)
        size *= 2


def _beside() -> Iterator[int]:
    """Sequences of a step that is no decode step; past 128 their last rows cost something too."""
    yield from (8, 32)
    size = 128
    while True:
        yield size
        size *= 2


def _until(most: int, sizes: Iterator[int]) -> Iterator[int]:
    for size in sizes:
        yield size
        if size >= most:
            break


def _at_least(sizes: list[int], n: int) -> int:
    return sizes[bisect_left(sizes, n)]
