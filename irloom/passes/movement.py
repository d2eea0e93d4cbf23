"""Ops that cut, join and repeat entries and cancel: the rules of ``canonicalize`` about those.

Reshapes and permutes, which keep every entry, are in ``motion``.
"""

from __future__ import annotations

from collections.abc import Sequence

from irloom.ir.dims import Dim
from irloom.ir.graph import Value
from irloom.ir.ops import add, concat, expand, pad, slice_, split, sub

from .algebra import Identity
from .core import NoMatch
from .rewrite import Rewrite, Site


class SameExpand(Identity):
    """An expand to the dims that a value has is the value."""

    def match(self, x: Value, *, dims: tuple[Dim, ...]) -> Value:
        return expand(x, dims=dims)

    def where(self, x: Value, dims: tuple[Dim, ...]) -> None:
        if x.type.dims != dims:
            raise NoMatch("other dims")

    def replace(self, x: Value) -> Value:
        return x


class ExpandOfExpand(Identity):
    """Two expands are one."""

    def match(self, x: Value, *, first: tuple[Dim, ...], dims: tuple[Dim, ...]) -> Value:
        return expand(expand(x, dims=first), dims=dims)

    def replace(self, x: Value, dims: tuple[Dim, ...]) -> Value:
        return expand(x, dims=dims)


class NoPad(Identity):
    """Padding by nothing is the value."""

    def match(self, x: Value, *, dim: int, value: float) -> Value:
        return pad(x, dim=dim, value=value)

    def replace(self, x: Value) -> Value:
        return x


class WholeSlice(Identity):
    """A slice of everything is the value."""

    def match(self, x: Value, *, dim: int, stop: Dim | None) -> Value:
        return slice_(x, dim=dim, stop=stop)

    def where(self, x: Value, dim: int, stop: Dim | None) -> None:
        if stop not in (None, x.type.dims[dim]):
            raise NoMatch("a part")

    def replace(self, x: Value) -> Value:
        return x


class SliceOfSlice(Identity):
    """A slice of a slice of the same dim is one slice."""

    def match(self, x: Value, *, d: int, a: int, b: Dim | None, start: int, stop: Dim | None) -> Value:
        return slice_(slice_(x, dim=d, start=a, stop=b), dim=d, start=start, stop=stop)

    def replace(self, x: Value, d: int, a: int, b: Dim | None, start: int, stop: Dim | None) -> Value:
        return slice_(x, dim=d, start=a + start, stop=b if stop is None else stop + a)


class SliceOfConcat(Identity):
    """A slice that lies within one part of a concat is a slice of that part."""

    def match(self, *xs: Value, dim: int, start: int, stop: int | None) -> Value:
        return slice_(concat(*xs, dim=dim), dim=dim, start=start, stop=stop)

    def where(self, xs: tuple[Value, ...], dim: int, start: int, stop: int | None) -> None:
        if _part(xs, dim, start, stop) is None:
            raise NoMatch("of several parts")

    def replace(self, xs: tuple[Value, ...], dim: int, start: int, stop: int | None) -> Value:
        found = _part(xs, dim, start, stop)
        assert found is not None
        x, first, last = found
        return slice_(x, dim=dim, start=first, stop=last)


def _part(xs: Sequence[Value], dim: int, start: int, stop: int | None) -> tuple[Value, int, int] | None:
    """The one value that a slice of a concat is part of, and where it starts and stops in there."""
    sizes = [size for x in xs if isinstance(size := x.type.dims[dim], int)]
    if len(sizes) < len(xs):
        return None
    end = sum(sizes) if stop is None else stop
    at = 0
    for x, size in zip(xs, sizes, strict=True):
        if at <= start and end <= at + size:
            return x, start - at, end - at
        at += size
    return None


class OnlyPart(Identity):
    """A concat of one value is the value."""

    def match(self, x: Value, *, dim: int) -> Value:
        return concat(x, dim=dim)

    def replace(self, x: Value) -> Value:
        return x


class ConcatOfConcat(Identity):
    """What is joined and then joined with more is joined at once."""

    def match(self, *xs: Value, dim: int) -> Value:
        return concat(*xs, dim=dim)

    def where(self, xs: tuple[Value, ...], dim: int, site: Site) -> None:
        if _flat(xs, dim, site) == xs:
            raise NoMatch("no part is joined of parts that nothing else reads")

    def replace(self, xs: tuple[Value, ...], dim: int, site: Site) -> Value:
        return concat(*_flat(xs, dim, site), dim=dim)


def _flat(xs: tuple[Value, ...], dim: int, site: Site) -> tuple[Value, ...]:
    """The parts of a concat, and in place of one that is joined itself, and read here alone, its parts.

    What is joined of sums stays: it may be the two halves of a rotation, which ``raise`` finds by its end.
    """
    out: list[Value] = []
    for x in xs:
        made = site.producer(x)
        joined = made is not None and made.op is concat and made.attrs["dim"] == dim
        alone = xs.count(x) == 1 and site.readers(x) == [site.root] and x not in site.func.returns
        sums = [n for v in made.values if (n := site.producer(v)) and n.op in (add, sub)] if made else []
        out += made.values if made is not None and joined and alone and not sums else [x]
    return tuple(out)


class OnlySplit(Identity):
    """A split into one part is the value."""

    def match(self, x: Value, *, dim: int, n: Dim) -> Value:
        return split(x, dim=dim, sizes=(n,))

    def replace(self, x: Value) -> Value:
        return x


class ConcatOfSplit(Identity):
    """Parts that are joined as they were cut are the value that was cut."""

    def match(self, *xs: Value, dim: int) -> Value:
        return concat(*xs, dim=dim)

    def where(self, xs: tuple[Value, ...], dim: int, site: Site) -> None:
        cut = site.producer(xs[0])
        if cut is None or cut.op is not split or list(xs) != cut.results or cut.attrs["dim"] != dim:
            raise NoMatch("not all parts of one split")

    def replace(self, xs: tuple[Value, ...], site: Site) -> Value:
        cut = site.producer(xs[0])
        assert cut is not None
        return cut.values[0]


class SplitOfConcat(Identity):
    """What is cut as it was joined is the parts."""

    def match(self, *xs: Value, dim: int, sizes: tuple[Dim, ...]) -> Value:
        return split(concat(*xs, dim=dim), dim=dim, sizes=sizes)

    def where(self, xs: tuple[Value, ...], dim: int, sizes: tuple[Dim, ...]) -> None:
        if tuple(x.type.dims[dim] for x in xs) != sizes:
            raise NoMatch("cut elsewhere")

    def replace(self, xs: tuple[Value, ...]) -> tuple[Value, ...]:
        return xs


RULES: tuple[Rewrite, ...] = (
    SameExpand(),
    ExpandOfExpand(),
    NoPad(),
    WholeSlice(),
    SliceOfSlice(),
    SliceOfConcat(),
    OnlyPart(),
    ConcatOfConcat(),
    OnlySplit(),
    ConcatOfSplit(),
    SplitOfConcat(),
)
