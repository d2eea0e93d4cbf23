"""What almost matched: where, how far it got, what stopped it. ``why`` prints them, tests pin them."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class NearMiss:
    """A place where a pass changed nothing, and why.

    ``place`` is ``function.value``, ``loc`` that place in the source model. A rewrite says how far its
    pattern got: the ops that ``matched``, in the order in which they did, of how many. Where it ``declined``,
    all of the pattern was there, and something else spoke against it. A pass without a pattern leaves
    ``matched`` empty: it had found all it looks for.

    >>> miss = NearMiss("main.y", "x is add, not silu", "FuseSiluMul", ("mul",), 2)
    >>> str(miss), miss.depth, miss.share
    ('main.y: FuseSiluMul: x is add, not silu', 1, 0.5)
    """

    place: str
    reason: str
    rule: str = ""
    matched: tuple[str, ...] = ()
    of: int = 0
    loc: str = ""
    declined: bool = False

    @property
    def depth(self) -> int:
        """How many ops had matched when it stopped."""
        return len(self.matched)

    @property
    def share(self) -> float:
        """How far that is, between 0 and 1."""
        return self.depth / self.of if self.of else 1.0

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.rule, self.reason) if part)


def ranked(misses: Iterable[NearMiss]) -> list[NearMiss]:
    """The closest first, before all what was declined; those that are equally close as they come."""
    return sorted(misses, key=lambda x: (not x.declined and x.of > 0, -x.share * x.depth))


_EVERY: ContextVar[bool] = ContextVar("irloom_every_miss", default=False)


@contextmanager
def every_miss() -> Generator[None]:
    """Inside the block quiet rules report, too, and patterns of which only the first op is there."""
    token = _EVERY.set(True)
    try:
        yield
    finally:
        _EVERY.reset(token)


def tells_all() -> bool:
    """Whether someone asked for every miss, not for the near ones alone."""
    return _EVERY.get()


def if_asked(place: str, reason: str) -> list[NearMiss]:
    """A miss that is news only to someone who asked why nothing happened."""
    return [NearMiss(place, reason)] if tells_all() else []
