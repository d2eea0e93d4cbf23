"""Types: an element, its dims, per dim the mesh axis that splits it, and whether it is a sum still split."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .dims import Dim, Sym
from .elem import AnyElem, Elem
from .errors import IRError


@dataclass(frozen=True)
class Type:
    """``elem[dims]``; ``axes[i]`` is the mesh axis that splits dim ``i``, ``partial`` that of an open sum.

    >>> from .elem import ELEMS
    >>> Type(ELEMS["bf16"], (8, 4096), (None, "tp"))
    bf16[8, 4096@tp]
    >>> Type(ELEMS["bf16"], (8,), partial="tp")
    partial[tp, bf16][8]
    """

    elem: AnyElem
    dims: tuple[Dim, ...] = ()
    axes: tuple[str | None, ...] = ()
    partial: str | None = None

    def __post_init__(self) -> None:
        if not self.axes:
            object.__setattr__(self, "axes", (None,) * len(self.dims))
        used = [a for a in self.axes if a]
        if len(set(used)) != len(used):
            raise IRError(
                f"{self}: mesh axis `{used[0]}` splits two dims", hint="an axis may split one dim of a type"
            )

    @property
    def rank(self) -> int:
        """How many dims it has."""
        return len(self.dims)

    @property
    def plain(self) -> Elem:
        """The element, where it must be a plain one."""
        if not isinstance(self.elem, Elem):
            raise IRError(f"{self} is not a plain tensor")
        return self.elem

    @property
    def nbytes(self) -> Dim:
        """Bytes of the whole value (not of one rank's part)."""
        return self.elem.nbytes(self.dims)

    def with_dims(self, dims: tuple[Dim, ...], axes: tuple[str | None, ...] = ()) -> Type:
        """The same element with other dims."""
        return replace(self, dims=dims, axes=axes)

    def with_elem(self, elem: AnyElem) -> Type:
        """The same dims with another element."""
        return replace(self, elem=elem)

    def __str__(self) -> str:
        dims = ", ".join(show_split(d, a) for d, a in zip(self.dims, self.axes, strict=True)) or "()"
        return f"{f'partial[{self.partial}, {self.elem}]' if self.partial else self.elem}[{dims}]"

    __repr__ = __str__


def show_split(d: Dim, axis: str | None) -> str:
    """A dim and the axis that splits it; ``@`` binds closer than ``+``."""
    if axis is None:
        return str(d)
    return f"({d})@{axis}" if isinstance(d, Sym) and len(d.terms) > 1 else f"{d}@{axis}"
