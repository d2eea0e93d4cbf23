"""Many entries become fewer: sums, maxima, the largest, softmax, running sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irloom.ir.elem import ELEMS

from ..network import Inferred, Layer, Sizes, Tensor, Value
from .rules import FLOATS, NUMBERS, OPERATORS, allow, at_least, axes_mask, axis_of, with_dim

if TYPE_CHECKING:
    import torch

    from ..emitter import Emitter


@dataclass(frozen=True)
class Softmax(Layer):
    """``exp(x) / sum(exp(x))`` along one axis."""

    source = f"{OPERATORS}/Softmax.html"

    x: Tensor
    axis: int = -1

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "x", self.x, FLOATS)
        at_least(self, self.x, 2)
        axis_of(self, self.axis, len(self.x.dims))
        return ((self.x.elem, self.x.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        return (value(self.x).softmax(self.axis),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        layer = to.network.add_softmax(to[self.x])
        layer.axes = axes_mask([self.axis], len(self.x.dims))
        return [layer.get_output(0)]


@dataclass(frozen=True)
class Reduce(Layer):
    """``sum``, ``prod``, ``max``, ``min`` or ``avg`` over ``axes``, which stay as dims of 1 with ``keep``."""

    source = f"{OPERATORS}/Reduce.html"

    op: str
    x: Tensor
    axes: tuple[int, ...]
    keep: bool = True

    def infer(self) -> tuple[Inferred, ...]:
        if self.op not in ("sum", "prod", "max", "min", "avg"):
            raise self.refuse(f"no operation {self.op!r}")
        allow(self, "x", self.x, NUMBERS)
        if not self.axes:
            raise self.refuse("no axes")
        gone = {axis_of(self, a, len(self.x.dims)) for a in self.axes}
        dims = [1 if i in gone else d for i, d in enumerate(self.x.dims) if self.keep or i not in gone]
        return ((self.x.elem, tuple(dims)),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch

        x = value(self.x)
        if self.op == "prod":
            for axis in sorted((a % x.dim() for a in self.axes), reverse=True):
                x = x.prod(axis, keepdim=self.keep, dtype=x.dtype)
            return (x,)
        if self.op in ("max", "min"):
            return (getattr(torch, f"a{self.op}")(x, self.axes, keepdim=self.keep),)
        if self.op == "sum" or not x.is_floating_point():
            total = x.sum(self.axes, keepdim=self.keep, dtype=x.dtype)
            count = x.numel() // max(total.numel(), 1)
            return (total if self.op == "sum" else torch.div(total, count, rounding_mode="trunc"),)
        return (x.mean(self.axes, keepdim=self.keep),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        op = getattr(to.trt.ReduceOperation, self.op.upper())
        mask = axes_mask(self.axes, len(self.x.dims))
        return [to.network.add_reduce(to[self.x], op, mask, self.keep).get_output(0)]


@dataclass(frozen=True)
class TopK(Layer):
    """The ``k`` largest (``op="max"``) or smallest along ``axis``, sorted, and where they were (i32)."""

    source = f"{OPERATORS}/TopK.html"

    op: str
    x: Tensor
    k: int
    axis: int = -1

    def infer(self) -> tuple[Inferred, ...]:
        if self.op not in ("max", "min"):
            raise self.refuse(f"no operation {self.op!r}")
        allow(self, "x", self.x, NUMBERS)
        at_least(self, self.x, 2)
        axis = axis_of(self, self.axis, len(self.x.dims))
        entries = self.x.dims[axis]
        if not 1 <= self.k <= 3840 or (isinstance(entries, int) and self.k > entries):
            raise self.refuse(f"k is {self.k}: 1 to 3840, and at most the {entries} entries of the axis")
        if axis < len(self.x.dims) - 4:
            raise self.refuse(f"axis {axis} is not one of the last four")
        dims = with_dim(self.x, axis, self.k)
        return ((self.x.elem, dims), (ELEMS["i32"], dims))

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        values, at = value(self.x).topk(self.k, self.axis, largest=self.op == "max")
        return values, at.int()

    def emit(self, to: Emitter) -> Sequence[Any]:
        op = getattr(to.trt.TopKOperation, self.op.upper())
        mask = axes_mask([self.axis], len(self.x.dims))
        layer = to.network.add_topk(to[self.x], op, self.k, mask)
        return [layer.get_output(0), layer.get_output(1)]


@dataclass(frozen=True)
class CumulativeSum(Layer):
    """Running sums along ``axis``: without the entry itself if ``exclusive``, from the end if ``reverse``."""

    source = f"{OPERATORS}/Cumulative.html"

    x: Tensor
    axis: int
    exclusive: bool = False
    reverse: bool = False

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "x", self.x, NUMBERS)
        axis_of(self, self.axis, len(self.x.dims))
        return ((self.x.elem, self.x.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        x = value(self.x)
        y = x.flip(self.axis) if self.reverse else x
        total = y.cumsum(self.axis, dtype=x.dtype)
        if self.exclusive:
            total = total - y
        return (total.flip(self.axis) if self.reverse else total,)

    def emit(self, to: Emitter) -> Sequence[Any]:
        import torch

        axis = torch.tensor(self.axis % len(self.x.dims), dtype=torch.int32)
        given = to[self.x], to.constant(ELEMS["i32"], axis), to.trt.CumulativeOperation.SUM
        return [to.network.add_cumulative(*given, self.exclusive, self.reverse).get_output(0)]
