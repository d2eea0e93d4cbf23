"""Where entries lie: transposed, reshaped, cut, padded, joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irloom.ir.dims import Dim, product

from ..network import Inferred, Layer, Sizes, Tensor, Value, size_of
from .rules import OPERATORS, PLAIN, QUANTIZED, allow, axis_of, same_elem, with_dim

if TYPE_CHECKING:
    import torch

    from ..emitter import Emitter


@dataclass(frozen=True)
class Shuffle(Layer):
    """Transpose by ``first``, reshape to ``dims``, transpose by ``second``; what is absent is left out."""

    source = f"{OPERATORS}/Shuffle.html"

    x: Tensor
    dims: tuple[Dim, ...] | None = None
    first: tuple[int, ...] | None = None
    second: tuple[int, ...] | None = None

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "x", self.x, (*PLAIN, *QUANTIZED))
        turned = self._turned(self.x.dims, self.first)
        if self.dims is not None and product(self.dims) != product(turned):
            raise self.refuse(f"{self.x} has no {product(self.dims)} entries for [{_list(self.dims)}]")
        return ((self.x.elem, self._turned(turned if self.dims is None else self.dims, self.second)),)

    def _turned(self, dims: tuple[Dim, ...], order: tuple[int, ...] | None) -> tuple[Dim, ...]:
        if order is None:
            return dims
        if sorted(order) != list(range(len(dims))):
            raise self.refuse(f"{list(order)} is no permutation of {len(dims)} dims")
        return tuple(dims[i] for i in order)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        x = value(self.x)
        if self.first is not None:
            x = x.permute(self.first)
        if self.dims is not None:
            x = x.reshape([size_of(d, sizes) for d in self.dims])
        return (x if self.second is None else x.permute(self.second),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        layer = to.network.add_shuffle(to[self.x])
        if self.first is not None:
            layer.first_transpose = to.trt.Permutation(self.first)
        if self.dims is not None:
            said = _with_placeholders(self.dims, self._turned(self.x.dims, self.first))
            if said is not None:
                layer.reshape_dims = said
            else:
                layer.set_input(1, to.sizes(self.dims))
        if self.second is not None:
            layer.second_transpose = to.trt.Permutation(self.second)
        return [layer.get_output(0)]


def _with_placeholders(dims: tuple[Dim, ...], old: tuple[Dim, ...]) -> tuple[int, ...] | None:
    """Dims as the API takes them: 0 copies the one of the input there, one -1 is what is left."""
    said = [d if isinstance(d, int) else 0 if d in old[i : i + 1] else -1 for i, d in enumerate(dims)]
    return tuple(said) if said.count(-1) <= 1 else None


@dataclass(frozen=True)
class Slice(Layer):
    """``size`` entries from ``start`` on, ``stride`` apart, in every dim.

    A stride may be negative, or 0, which repeats one entry. Outside of the input, ``mode`` decides:
    ``strict_bounds`` refuses, ``fill`` gives ``fill``, ``clamp`` the nearest, ``wrap`` begins again,
    ``reflect`` turns back.
    """

    source = f"{OPERATORS}/Slice.html"

    x: Tensor
    start: tuple[Dim, ...]
    size: tuple[Dim, ...]
    stride: tuple[int, ...] | None = None
    mode: str = "strict_bounds"
    fill: float | bool = 0

    @property
    def _strides(self) -> tuple[int, ...]:
        return self.stride if self.stride is not None else (1,) * len(self.x.dims)

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "x", self.x, PLAIN)
        rank = len(self.x.dims)
        if not rank or {len(self.start), len(self.size), len(self._strides)} != {rank}:
            raise self.refuse(f"start, size and stride need {rank} entries each, and at least 1")
        if self.mode not in ("strict_bounds", "wrap", "clamp", "fill", "reflect"):
            raise self.refuse(f"no mode {self.mode!r}")
        if self.mode == "strict_bounds":
            for d, a, n, s in zip(self.x.dims, self.start, self.size, self._strides, strict=True):
                last = a + (n - 1) * s
                if any(isinstance(i, int) and isinstance(d, int) and not 0 <= i < d for i in (a, last)):
                    raise self.refuse(f"{a} to {last} leaves the {d} entries of {self.x}")
        return ((self.x.elem, self.size),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch

        x = value(self.x)
        whole = torch.ones((), dtype=torch.bool, device=x.device)
        for i, (a, n, s) in enumerate(zip(self.start, self.size, self._strides, strict=True)):
            a, n, d = size_of(a, sizes), size_of(n, sizes), x.shape[i]
            if s == 1 and a >= 0 and a + n <= d:
                x = x.narrow(i, a, n)
                continue
            ends = (a, a + (n - 1) * s)
            assert self.mode != "strict_bounds" or (min(ends) >= 0 and max(ends) < d), (
                f"{self}: out of bounds"
            )
            at = a + torch.arange(n, device=x.device) * s
            inside = (at >= 0) & (at < d)
            x = x.index_select(i, _folded(at, d, self.mode))
            whole = whole & inside.reshape([-1 if j == i else 1 for j in range(x.dim())])
        if self.mode == "fill":
            x = torch.where(whole, x, x.new_full((), self.fill))
        return (x,)

    def emit(self, to: Emitter) -> Sequence[Any]:
        import torch

        start, size = to.dims(self.start), to.dims(self.size)
        layer = to.network.add_slice(to[self.x], start, size, self._strides)
        if to.symbolic(self.start):
            layer.set_input(1, to.sizes(self.start))
        if to.symbolic(self.size):
            layer.set_input(2, to.sizes(self.size))
        layer.mode = getattr(to.trt.SampleMode, self.mode.upper())
        if self.mode == "fill":
            elem = self.x.elem
            layer.set_input(4, to.constant(elem, torch.tensor(self.fill, dtype=elem.torch)))
        return [layer.get_output(0)]


def _folded(at: torch.Tensor, d: int, mode: str) -> torch.Tensor:
    """Where in the input an index outside of it is read."""
    if mode == "wrap":
        return at % d
    if mode == "reflect" and d > 1:
        at = at % (2 * d - 2)
        return at.minimum(2 * d - 2 - at)
    return at.clamp(0, d - 1)


@dataclass(frozen=True)
class Concatenation(Layer):
    """Inputs one after the other along ``axis``."""

    source = f"{OPERATORS}/Concatenation.html"

    parts: tuple[Tensor, ...]
    axis: int

    def infer(self) -> tuple[Inferred, ...]:
        if not self.parts:
            raise self.refuse("nothing to join")
        same_elem(self, *self.parts)
        allow(self, "a part", self.parts[0], (*PLAIN, *QUANTIZED))
        first = self.parts[0]
        axis = axis_of(self, self.axis, len(first.dims))
        if any(with_dim(t, axis, 0) != with_dim(first, axis, 0) for t in self.parts):
            raise self.refuse(f"{' and '.join(map(str, self.parts))} differ in more than dim {axis}")
        total: Dim = 0
        for t in self.parts:
            total = t.dims[axis] + total
        return ((first.elem, with_dim(first, axis, total)),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch

        return (torch.cat([value(t) for t in self.parts], self.axis),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        layer = to.network.add_concatenation([to[t] for t in self.parts])
        layer.axis = self.axis % len(self.parts[0].dims)
        return [layer.get_output(0)]


def _list(dims: Sequence[Dim]) -> str:
    return ", ".join(map(str, dims))
