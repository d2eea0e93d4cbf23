"""Where values live: mostly columns of a buffer whose rows are tokens or sequences."""

from __future__ import annotations

from dataclasses import dataclass, replace

from irloom.ir.dims import Dim, Sym, product
from irloom.ir.elem import Elem
from irloom.ir.graph import Value


@dataclass(frozen=True)
class Place:
    """A tensor in memory: ``dims`` entries from ``offset``, rows (dim 0) ``stride`` entries apart.

    Within a row the entries are contiguous. Tokens need not be the first dim: kernels take rows of a known
    width, but bodies of ops take any tensor, and one without such rows has no gaps. ``buffer`` names memory
    that the program owns, or an array of the step (``tokens``, ``positions``).
    """

    buffer: str
    elem: Elem
    dims: tuple[Dim, ...]
    stride: Dim
    offset: int = 0

    @staticmethod
    def of(buffer: str, v: Value) -> Place:
        """A buffer of its own for ``v``."""
        return Place(buffer, v.type.plain, v.type.dims, product(v.type.dims[1:]))

    @property
    def width(self) -> Dim:
        """Entries of a row."""
        return product(self.dims[1:])

    @property
    def whole(self) -> bool:
        """Whether rows follow each other without a gap."""
        return self.stride == self.width

    def reshaped(self, dims: tuple[Dim, ...]) -> Place | None:
        """The same entries under other dims, where they can be seen in place."""
        if self.dims[:1] == dims[:1] or self.whole:
            kept = self.stride if self.dims[:1] == dims[:1] else product(dims[1:])
            return replace(self, dims=dims, stride=kept)
        return None

    def columns(self, start: int, dims: tuple[Dim, ...]) -> Place:
        """Some columns of every row, from ``start`` on."""
        return replace(self, offset=self.offset + start, dims=dims)

    def text(self) -> str:
        """The expression that makes it in a program."""
        dims = ", ".join(str(d) for d in self.dims) + "," * (len(self.dims) == 1)
        more = [f"offset={self.offset}"] * bool(self.offset) + [f"stride={self.stride}"] * (not self.whole)
        elem = [f'"{self.elem}"'] if self.elem.name != "f32" else []
        return f"rows({', '.join([self.buffer, f'({dims})', *elem, *more])})"


def by_rows(dims: tuple[Dim, ...]) -> bool:
    """Whether a tensor has one row per token or sequence, and rows of a known width."""
    return len(dims) > 0 and isinstance(dims[0], Sym) and all(isinstance(d, int) for d in dims[1:])


def column(dims: tuple[Dim, ...], dim: object) -> int | None:
    """How many entries of a row one index of ``dim`` spans; None where parts of it are no columns.

    >>> from irloom.ir.dims import sym
    >>> column((sym("T"), 4, 8), 1), column((sym("T"), 1, 8), -1), column((sym("T"), 4, 8), -1)
    (8, 1, None)
    """
    assert isinstance(dim, int)
    at = dim % len(dims)
    if at == 0 or not by_rows(dims) or product(dims[1:at]) != 1:
        return None
    inner = product(dims[at + 1 :])
    assert isinstance(inner, int)
    return inner
