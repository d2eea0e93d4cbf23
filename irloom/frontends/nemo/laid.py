"""Tensors as rectangles of files: sliced, joined and reordered by geometry, before a byte is read.

Training writes a model in pieces: a layer is one row of a stacked tensor, a row is spread over ranks, query,
key and value rows alternate. A ``Laid`` says which run of which file each part of a tensor is; taking rows
and joining tensors give a ``Laid`` again, and only ``read`` touches the files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from irloom.ir.elem import Elem
from irloom.ir.errors import CheckpointError
from irloom.ir.safetensors import Stored

if TYPE_CHECKING:
    import torch


_OTHER = "the config is that of another model, or parts of two checkpoints are mixed"


class Source(Protocol):
    """A tensor whose entries lie in one run in a file."""

    def locate(self) -> Stored:
        """Where; may read a header. ``CheckpointError`` where the file does not hold what was promised."""
        ...


@dataclass(frozen=True)
class Placed:
    """A source whose place is already known."""

    at: Stored

    def locate(self) -> Stored:
        return self.at


@dataclass(frozen=True)
class Piece:
    """A rectangle ``dims`` from entry ``first`` of ``source`` on, which lies ``at`` in the whole."""

    source: Source
    first: int
    dims: tuple[int, ...]
    at: tuple[int, ...]

    def locate(self) -> Stored:
        found = self.source.locate()
        return Stored(found.path, found.offset + self.first * found.elem.bits // 8, self.dims, found.elem)


@dataclass(frozen=True)
class Laid:
    """A tensor of ``dims`` that its ``pieces`` cover without gap or overlap; zeros where there are none."""

    dims: tuple[int, ...]
    elem: Elem
    pieces: tuple[Piece, ...]

    def rows(self, begin: int, end: int) -> Laid:
        """Rows ``begin`` to ``end`` of the first dim."""
        if not 0 <= begin <= end <= self.dims[0]:
            raise CheckpointError(f"rows {begin} to {end} wanted of a tensor {list(self.dims)}", hint=_OTHER)
        kept: list[Piece] = []
        for piece in self.pieces:
            low, high = max(begin, piece.at[0]), min(end, piece.at[0] + piece.dims[0])
            if low < high:
                skipped = (low - piece.at[0]) * math.prod(piece.dims[1:])
                dims, at = (high - low, *piece.dims[1:]), (low - begin, *piece.at[1:])
                kept.append(Piece(piece.source, piece.first + skipped, dims, at))
        return Laid((end - begin, *self.dims[1:]), self.elem, tuple(kept))

    def row(self, i: int) -> Laid:
        """Index ``i`` of the first dim, which goes."""
        one = self.rows(i, i + 1)
        pieces = tuple(replace(p, dims=p.dims[1:], at=p.at[1:]) for p in one.pieces)
        return Laid(self.dims[1:], self.elem, pieces)

    def split(self, sizes: Sequence[int]) -> list[Laid]:
        """Consecutive rows, ``sizes`` of them, which must be all."""
        if sum(sizes) != self.dims[0]:
            raise CheckpointError(f"a tensor {list(self.dims)} does not have {sum(sizes)} rows", hint=_OTHER)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [self.rows(start, start + size) for start, size in zip(starts, sizes, strict=True)]

    def grouped(self, groups: int, sizes: Sequence[int]) -> list[Laid]:
        """Rows that come in ``groups`` of ``sizes``, the first of each group together, and so on."""
        parts = [part.split(sizes) for part in self.split([sum(sizes)] * groups)]
        return [joined(list(column)) for column in zip(*parts, strict=True)]

    def stored(self) -> Stored | None:
        """The one run in a file that the tensor is; None where it is made of several."""
        return self.pieces[0].locate() if len(self.pieces) == 1 and self.pieces[0].dims == self.dims else None

    def read(self) -> torch.Tensor:
        """Its values: the file's own bytes, mapped, where it is one run; else a copy."""
        import torch

        from irloom.ir.mapped import map_tensor

        if one := self.stored():
            return map_tensor(one.path, one.offset, one.dims, one.elem.torch)
        out = torch.zeros(self.dims, dtype=self.elem.torch)
        for piece in self.pieces:
            at = piece.locate()
            box = tuple(slice(a, a + n) for a, n in zip(piece.at, piece.dims, strict=True))
            out[box] = map_tensor(at.path, at.offset, at.dims, at.elem.torch)
        return out


def laid(stored: Stored) -> Laid:
    """A tensor that lies in a file as one run."""
    return Laid(stored.dims, stored.elem, (Piece(Placed(stored), 0, stored.dims, (0,) * len(stored.dims)),))


def joined(parts: Sequence[Laid], dim: int = 0) -> Laid:
    """Tensors one after the other along ``dim``."""
    first = parts[0]
    rest = [(*p.dims[:dim], *p.dims[dim + 1 :]) for p in parts]
    if len({*rest}) > 1 or len({p.elem for p in parts}) > 1:
        shown = ", ".join(f"{p.elem}{list(p.dims)}" for p in parts[:4])
        raise CheckpointError(f"tensors {shown} do not join along dim {dim}", hint=_OTHER)
    pieces: list[Piece] = []
    start = 0
    for part in parts:
        for p in part.pieces:
            pieces.append(replace(p, at=(*p.at[:dim], p.at[dim] + start, *p.at[dim + 1 :])))
        start += part.dims[dim]
    dims = (*first.dims[:dim], start, *first.dims[dim + 1 :])
    return Laid(dims, first.elem, _fused(tuple(pieces), dims, dim))


def _fused(pieces: tuple[Piece, ...], dims: tuple[int, ...], dim: int) -> tuple[Piece, ...]:
    """Neighbours along the first dim that are one run of a file as one piece."""
    if dim:
        return pieces
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        if last and last.source is piece.source and last.dims[1:] == piece.dims[1:] == dims[1:]:
            follows = last.first + math.prod(last.dims) == piece.first
            if follows and last.at[0] + last.dims[0] == piece.at[0]:
                out[-1] = replace(last, dims=(last.dims[0] + piece.dims[0], *last.dims[1:]))
                continue
        out.append(piece)
    return tuple(out)
