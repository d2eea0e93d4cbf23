"""Values that no input gives: constants, ramps, and dims as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from irloom.ir.dims import Dim, product
from irloom.ir.elem import ELEMS, Elem

from ..network import Inferred, Layer, Sizes, Value, size_of
from .rules import OPERATORS

if TYPE_CHECKING:
    import torch

    from ..emitter import Emitter


@dataclass(frozen=True)
class Constant(Layer):
    """A few values that are part of the network. Large ones are weights, which a plan may leave out."""

    source = f"{OPERATORS}/Constant.html"

    elem: Elem
    dims: tuple[int, ...]
    values: tuple[float | int | bool, ...]

    @classmethod
    def of(cls, elem: Elem, value: float, rank: int = 0) -> Self:
        """One value, with dims of 1 so that it broadcasts."""
        return cls(elem, (1,) * rank, (value,))

    def infer(self) -> tuple[Inferred, ...]:
        if product(self.dims) != len(self.values):
            raise self.refuse(f"{len(self.values)} values for the dims {list(self.dims)}")
        return ((self.elem, self.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        return (self.tensor(sizes.device),)

    def tensor(self, device: Any = None) -> torch.Tensor:
        """Its values in torch."""
        import torch

        return torch.tensor(self.values, device=device).to(self.elem.torch).reshape(self.dims)

    def emit(self, to: Emitter) -> Sequence[Any]:
        return [to.constant(self.elem, self.tensor())]


@dataclass(frozen=True)
class Linspace(Layer):
    """``start + sum(index[i] * steps[i])`` at each index: a ramp, or one value where the steps are 0."""

    source = f"{OPERATORS}/Fill.html"

    elem: Elem
    dims: tuple[Dim, ...]
    start: float
    steps: tuple[float, ...]

    def infer(self) -> tuple[Inferred, ...]:
        if self.elem.name not in ("f32", "i32", "i64"):
            raise self.refuse(f"it makes f32, i32 or i64, not {self.elem}")
        if not self.dims or len(self.steps) != len(self.dims):
            raise self.refuse(f"{len(self.steps)} steps for {len(self.dims)} dims: one each, at least 1")
        return ((self.elem, self.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch

        dims = [size_of(d, sizes) for d in self.dims]
        out = torch.full(dims, self.start, dtype=self.elem.torch, device=sizes.device)
        for i, (n, step) in enumerate(zip(dims, self.steps, strict=True)):
            ramp = torch.arange(n, device=sizes.device) * step
            out = out + ramp.to(self.elem.torch).reshape([-1 if j == i else 1 for j in range(len(dims))])
        return (out,)

    def emit(self, to: Emitter) -> Sequence[Any]:
        import torch

        kind = self.elem.torch
        said = (1,) * len(self.dims) if to.symbolic(self.dims) else to.dims(self.dims)
        layer = to.network.add_fill(said, to.trt.FillOperation.LINSPACE, to.dtype(self.elem))
        if to.symbolic(self.dims):
            layer.set_input(0, to.sizes(self.dims))
        layer.set_input(1, to.constant(self.elem, torch.tensor(self.start, dtype=kind)))
        layer.set_input(2, to.constant(self.elem, torch.tensor(self.steps, dtype=kind)))
        return [layer.get_output(0)]


@dataclass(frozen=True)
class DimValues(Layer):
    """Dims as numbers, i64[n]: what ``T`` or ``8*T + 1`` is in this step."""

    source = f"{OPERATORS}/Shape.html"

    dims: tuple[Dim, ...]

    def infer(self) -> tuple[Inferred, ...]:
        return ((ELEMS["i64"], (len(self.dims),)),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch

        return (torch.tensor([size_of(d, sizes) for d in self.dims], device=sizes.device),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        return [to.sizes(self.dims)]
