"""How ops that only move entries become views where these lie right, and one strided copy elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irloom.backends.cpu.lower import Lowering
from irloom.backends.cpu.place import by_rows, column
from irloom.backends.cpu.program import lowers
from irloom.ir.dims import Dim
from irloom.ir.graph import Node, Value

DEPTH = 3
"""Loops of the kernel within a row."""


@dataclass(frozen=True)
class Walk:
    """A way through the entries of a row: where it starts, and how far apart the entries of each dim are."""

    start: int
    steps: tuple[int, ...]

    @staticmethod
    def over(v: Value) -> Walk:
        """In order, over the dims of a row of ``v``."""
        steps = [1]
        for n in reversed(_row(v)[1:]):
            steps.insert(0, steps[0] * n)
        return Walk(0, tuple(steps)[: len(_row(v))])

    def moved(self, dim: int, by: int, step: int = 1) -> Walk:
        """From entry ``by`` of a dim of the row on, every ``step``-th."""
        steps = (*self.steps[:dim], self.steps[dim] * step, *self.steps[dim + 1 :])
        return Walk(self.start + by * self.steps[dim], steps)


@lowers("reshape")
def reshape(f: Lowering, n: Node) -> bool:
    """The same memory under other dims."""
    x = n.args[0]
    if not isinstance(x, Value) or f.is_weight(x):
        return False
    return f.alias(n.result, f.places[x].reshaped(n.result.type.dims))


@lowers("split")
def split(f: Lowering, n: Node) -> bool:
    """Columns of the same memory, or of each head of it."""
    x, at = _source(n), 0
    for r in n.results:
        if not _part(f, n, x, r, at, 1):
            return False
        at += _size(r, n)
    return True


@lowers("slice")
def slice_(f: Lowering, n: Node) -> bool:
    """Columns of the same memory, or of each head of it."""
    start, step = n.attrs["start"], n.attrs["step"]
    assert isinstance(start, int) and isinstance(step, int)
    return _part(f, n, _source(n), n.result, start, step)


def _part(f: Lowering, n: Node, x: Value, part: Value, at: int, step: int) -> bool:
    """See ``part`` in place of ``x``, or copy it."""
    inner = column(x.type.dims, n.attrs["dim"])
    if f.is_weight(x):
        return False
    if inner is not None and step == 1 and f.alias(part, f.places[x].columns(at * inner, part.type.dims)):
        return True
    dim = _dim(n, x)
    return dim > 0 and _moves(f, x, part) and _move(f, n, x, part, read=Walk.over(x).moved(dim - 1, at, step))


@lowers("concat")
def concat(f: Lowering, n: Node) -> bool:
    """Each part is copied to its columns, or to those of each head."""
    dim, at = _dim(n, n.result), 0
    if dim == 0 or not all(_moves(f, x, n.result) for x in n.values) or len(n.values) < len(n.args):
        return False
    f.place(n.result)
    for x in n.values:
        _move(f, n, x, n.result, write=Walk.over(n.result).moved(dim - 1, at))
        at += _size(x, n)
    return True


@lowers("permute")
def permute(f: Lowering, n: Node) -> bool:
    """The entries of each row in another order."""
    x, order = _source(n), n.attrs["dims"]
    assert isinstance(order, tuple)
    if order[0] != 0 or not _moves(f, x, n.result):
        return False
    steps = Walk.over(x).steps
    return _move(f, n, x, n.result, read=Walk(0, tuple(steps[int(str(d)) - 1] for d in order[1:])))


@lowers("expand")
def expand(f: Lowering, n: Node) -> bool:
    """Entries of each row again and again."""
    x, r = _source(n), n.result
    if x.type.dims[:1] != r.type.dims[:1] or x.type.rank != r.type.rank or not _moves(f, x, r):
        return False
    grown = zip(Walk.over(x).steps, _row(x), _row(r), strict=True)
    return _move(f, n, x, r, read=Walk(0, tuple(0 if a < b else step for step, a, b in grown)))


def _source(n: Node) -> Value:
    (x,) = n.values
    return x


def _dim(n: Node, v: Value) -> int:
    dim = n.attrs["dim"]
    assert isinstance(dim, int)
    return dim % v.type.rank


def _size(v: Value, n: Node) -> int:
    """How long the dim is that a split cuts, or a concat joins."""
    (size,) = _ints([v.type.dims[_dim(n, v)]])
    return size


def _row(v: Value) -> list[int]:
    return _ints(v.type.dims[1:])


def _ints(dims: Sequence[Dim]) -> list[int]:
    return [d for d in dims if isinstance(d, int)]


def _moves(f: Lowering, x: Value, y: Value) -> bool:
    """Whether the kernel can bring entries of one to the other: rows of four bytes an entry."""
    rows = by_rows(x.type.dims) and by_rows(y.type.dims) and not f.is_weight(x)
    return rows and all(v.type.plain.name in ("f32", "i32") for v in (x, y))


def _move(
    f: Lowering, n: Node, x: Value, y: Value, *, read: Walk | None = None, write: Walk | None = None
) -> bool:
    """Copy all of ``y`` from a walk through ``x``, or all of ``x`` to a walk through ``y``."""
    sizes = _row(x if read is None else y)
    read, write = read or Walk.over(x), write or Walk.over(y)
    loops = _joined(list(zip(sizes, read.steps, write.steps, strict=True)))
    if len(loops) > DEPTH:
        return False
    loops = [(1, 0, 0)] * (DEPTH - len(loops)) + loops
    f.place(y)
    f.call(
        "move", x, y,
        sizes=tuple(size for size, _, _ in loops),
        read=(read.start, *(step for _, step, _ in loops)),
        write=(write.start, *(step for _, _, step in loops)), loc=n.loc,
    )  # fmt: skip
    return True


def _joined(loops: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Fewer loops that do the same: without those over one entry, and two that go on alike as one."""
    out: list[tuple[int, int, int]] = []
    for size, a, b in loops:
        if out and out[-1][1:] == (size * a, size * b):
            out[-1] = (out[-1][0] * size, a, b)
        elif size != 1:
            out.append((size, a, b))
    return out
