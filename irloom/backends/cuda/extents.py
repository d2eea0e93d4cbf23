"""Where the bytes of a weight lie in files, unchanged: a tensor as it is, or parts of several."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from irloom.ir.checkpoint import Checkpoint, Spelled
from irloom.ir.elem import Elem
from irloom.ir.weight_expr import Cast, Concat, Reshape, Slice, Tensor, WeightExpr, tensor_name
from irloom.ir.weights import weight_type


@dataclass(frozen=True)
class Extent:
    """Bytes of a file: ``nbytes`` from ``start`` on."""

    path: Path
    start: int
    nbytes: int

    def part(self, start: int, stop: int) -> Extent:
        """Those of its bytes."""
        return Extent(self.path, self.start + start, stop - start)


def extents(
    expr: WeightExpr, elem: Elem, checkpoint: Checkpoint, layer: int | None = None
) -> list[Extent] | None:
    """The bytes of an expression in ``elem``, in order; None where it has to be computed.

    Rows that are joined or cut lie as they do in the files, and so does what has other dims; so do experts
    that are stacked.
    """
    match expr:
        case Tensor(name):
            return _tensor(tensor_name(name, layer), elem, checkpoint)
        case Cast(x, to) if to == elem:
            return extents(x, elem, checkpoint, layer)
        case Reshape(x):
            return extents(x, elem, checkpoint, layer)
        case Concat(parts, 0):
            found = [extents(x, elem, checkpoint, layer) for x in parts]
            return None if None in found else joined([e for each in found for e in each or ()])
        case Slice(x, 0, start, stop):
            rows, *rest = (d for d in weight_type(x, checkpoint, layer).dims if isinstance(d, int))
            width = math.prod(rest) * elem.bits // 8
            inner = extents(x, elem, checkpoint, layer)
            return inner and cut(inner, start * width, min(stop, rows) * width)
        case _:
            return None


def _tensor(name: str, elem: Elem, checkpoint: Checkpoint) -> list[Extent] | None:
    if checkpoint.elem(name) != elem:
        return None
    if at := checkpoint.stored(name):
        return [Extent(at.path, at.offset, at.nbytes)]
    made = checkpoint.spelled(name) if isinstance(checkpoint, Spelled) else None
    return made and extents(made[0], elem, made[1])


def joined(pieces: list[Extent]) -> list[Extent]:
    """The same bytes, those that lie behind each other as one.

    >>> joined([Extent(Path("a"), 0, 4), Extent(Path("a"), 4, 4), Extent(Path("a"), 9, 1)])
    [Extent(path=PosixPath('a'), start=0, nbytes=8), Extent(path=PosixPath('a'), start=9, nbytes=1)]
    """
    out: list[Extent] = []
    for e in pieces:
        last = out[-1] if out else None
        if last and last.path == e.path and last.start + last.nbytes == e.start:
            out[-1] = Extent(e.path, last.start, last.nbytes + e.nbytes)
        else:
            out.append(e)
    return out


def cut(pieces: list[Extent], start: int, stop: int) -> list[Extent]:
    """Bytes ``start`` to ``stop`` of all of them together."""
    out, at = list[Extent](), 0
    for e in pieces:
        low, high = max(start - at, 0), min(stop - at, e.nbytes)
        if low < high:
            out.append(e.part(low, high))
        at += e.nbytes
    return out
