"""Ops that move entries and cancel: the rules of ``canonicalize`` about shapes."""

from __future__ import annotations

from collections.abc import Sequence

from irloom.ir.dims import Dim
from irloom.ir.graph import Value
from irloom.ir.ops import concat, expand, permute, reshape, slice_, split

from .algebra import Identity
from .core import NoMatch
from .rewrite import Rewrite, Site


class SameReshape(Identity):
    """A reshape to the dims that a value has is the value."""

    def match(self, x: Value, *, dims: tuple[Dim, ...]) -> Value:
        return reshape(x, dims=dims)

    def where(self, x: Value, dims: tuple[Dim, ...]) -> None:
        if x.type.dims != dims:
            raise NoMatch("other dims")

    def replace(self, x: Value) -> Value:
        return x


class ReshapeOfReshape(Identity):
    """Only the last of two reshapes counts."""

    def match(self, x: Value, *, first: tuple[Dim, ...], dims: tuple[Dim, ...]) -> Value:
        return reshape(reshape(x, dims=first), dims=dims)

    def replace(self, x: Value, dims: tuple[Dim, ...]) -> Value:
        return reshape(x, dims=dims)


class SamePermute(Identity):
    """The order that dims have already changes nothing."""

    def match(self, x: Value, *, dims: tuple[int, ...]) -> Value:
        return permute(x, dims=dims)

    def where(self, dims: tuple[int, ...]) -> None:
        if dims != tuple(range(len(dims))):
            raise NoMatch("another order")

    def replace(self, x: Value) -> Value:
        return x


class PermuteOfPermute(Identity):
    """Two permutations are one."""

    def match(self, x: Value, *, first: tuple[int, ...], dims: tuple[int, ...]) -> Value:
        return permute(permute(x, dims=first), dims=dims)

    def replace(self, x: Value, first: tuple[int, ...], dims: tuple[int, ...]) -> Value:
        return permute(x, dims=tuple(first[d] for d in dims))


class PermuteOfOnes(Identity):
    """A permutation that only moves dims of size 1 leaves the entries where they are."""

    def match(self, x: Value, *, dims: tuple[int, ...]) -> Value:
        return permute(x, dims=dims)

    def where(self, x: Value, dims: tuple[int, ...]) -> None:
        moved = [d for d in dims if x.type.dims[d] != 1]
        if moved != sorted(moved):
            raise NoMatch("entries move")

    def replace(self, x: Value, dims: tuple[int, ...]) -> Value:
        return reshape(x, dims=tuple(x.type.dims[d] for d in dims))


class SameExpand(Identity):
    """An expand to the dims that a value has is the value."""

    def match(self, x: Value, *, dims: tuple[Dim, ...]) -> Value:
        return expand(x, dims=dims)

    def where(self, x: Value, dims: tuple[Dim, ...]) -> None:
        if x.type.dims != dims:
            raise NoMatch("other dims")

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
    SameReshape(),
    ReshapeOfReshape(),
    SamePermute(),
    PermuteOfPermute(),
    PermuteOfOnes(),
    SameExpand(),
    WholeSlice(),
    SliceOfSlice(),
    SliceOfConcat(),
    OnlyPart(),
    OnlySplit(),
    ConcatOfSplit(),
    SplitOfConcat(),
)
