"""Entries picked and placed by index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irloom.ir.dims import Dim

from ..network import Inferred, Layer, Sizes, Tensor, Value
from .rules import INTS, OPERATORS, PLAIN, allow, axis_of, same_elem

if TYPE_CHECKING:
    import torch

    from ..emitter import Emitter


@dataclass(frozen=True)
class Gather(Layer):
    """The slices of ``x`` along ``axis`` that ``indices`` names; their dims take the place of the axis.

    The first ``batch`` dims (0 or 1) of both are walked together and appear once.
    """

    source = f"{OPERATORS}/Gather.html"

    x: Tensor
    indices: Tensor
    axis: int = 0
    batch: int = 0

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "x", self.x, PLAIN)
        allow(self, "indices", self.indices, INTS)
        axis = axis_of(self, self.axis, len(self.x.dims))
        if self.batch not in (0, 1) or axis < self.batch:
            raise self.refuse(f"{self.batch} batch dims, axis {axis}: 0 or 1, and before the axis")
        if self.x.dims[: self.batch] != self.indices.dims[: self.batch]:
            raise self.refuse(f"{self.x} and {self.indices} differ in the batch")
        rest = self.indices.dims[self.batch :]
        return ((self.x.elem, (*self.x.dims[:axis], *rest, *self.x.dims[axis + 1 :])),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch

        x, at, axis = value(self.x), value(self.indices).long(), self.axis % len(self.x.dims)
        if self.batch:
            rows = [a.index_select(axis - 1, i.reshape(-1)) for a, i in zip(x, at, strict=True)]
            picked = torch.stack(rows) if rows else x.index_select(axis, at.reshape(-1))
        else:
            picked = x.index_select(axis, at.reshape(-1))
        return (picked.reshape(*x.shape[:axis], *at.shape[self.batch :], *x.shape[axis + 1 :]),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        layer = to.network.add_gather(to[self.x], to[self.indices], self.axis % len(self.x.dims))
        layer.num_elementwise_dims = self.batch
        return [layer.get_output(0)]


@dataclass(frozen=True)
class GatherElements(Layer):
    """``out[i][j] = x[indices[i][j]][j]`` for axis 0, and so on: one index an entry."""

    source = f"{OPERATORS}/Gather.html"

    x: Tensor
    indices: Tensor
    axis: int

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "x", self.x, PLAIN)
        allow(self, "indices", self.indices, INTS)
        axis = axis_of(self, self.axis, len(self.x.dims))
        _same_but(self, self.x, self.indices, axis)
        return ((self.x.elem, self.indices.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        return (value(self.x).gather(self.axis, value(self.indices).long()),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        layer = to.network.add_gather_v2(to[self.x], to[self.indices], to.trt.GatherMode.ELEMENT)
        layer.axis = self.axis % len(self.x.dims)
        return [layer.get_output(0)]


@dataclass(frozen=True)
class GatherNd(Layer):
    """What the last dim of ``indices`` points at: ``out[i] = x[indices[i][0], indices[i][1], ...]``."""

    source = f"{OPERATORS}/Gather.html"

    x: Tensor
    indices: Tensor

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "x", self.x, PLAIN)
        allow(self, "indices", self.indices, INTS)
        depth = _depth(self, self.x, self.indices)
        return ((self.x.elem, (*self.indices.dims[:-1], *self.x.dims[depth:])),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        return (value(self.x)[value(self.indices).long().unbind(-1)],)

    def emit(self, to: Emitter) -> Sequence[Any]:
        layer = to.network.add_gather_v2(to[self.x], to[self.indices], to.trt.GatherMode.ND)
        return [layer.get_output(0)]


@dataclass(frozen=True)
class ScatterElements(Layer):
    """``x`` with ``out[indices[i][j]][j] = updates[i][j]`` for axis 0, and so on. No index may come twice."""

    source = f"{OPERATORS}/Scatter.html"

    x: Tensor
    indices: Tensor
    updates: Tensor
    axis: int

    def infer(self) -> tuple[Inferred, ...]:
        same_elem(self, self.x, self.updates)
        allow(self, "x", self.x, PLAIN)
        allow(self, "indices", self.indices, INTS)
        axis_of(self, self.axis, len(self.x.dims))
        if self.indices.dims != self.updates.dims or len(self.indices.dims) != len(self.x.dims):
            raise self.refuse(f"{self.indices} and {self.updates}: equal dims, as many as {self.x}")
        return ((self.x.elem, self.x.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        return (value(self.x).scatter(self.axis, value(self.indices).long(), value(self.updates)),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        mode = to.trt.ScatterMode.ELEMENT
        layer = to.network.add_scatter(to[self.x], to[self.indices], to[self.updates], mode)
        layer.axis = self.axis % len(self.x.dims)
        return [layer.get_output(0)]


@dataclass(frozen=True)
class ScatterNd(Layer):
    """``x`` with ``out[indices[i][0], indices[i][1], ...] = updates[i]``. No index may come twice."""

    source = f"{OPERATORS}/Scatter.html"

    x: Tensor
    indices: Tensor
    updates: Tensor

    def infer(self) -> tuple[Inferred, ...]:
        same_elem(self, self.x, self.updates)
        allow(self, "x", self.x, PLAIN)
        allow(self, "indices", self.indices, INTS)
        depth = _depth(self, self.x, self.indices)
        if self.updates.dims != (*self.indices.dims[:-1], *self.x.dims[depth:]):
            raise self.refuse(f"{self.updates} are not what {self.indices} picks of {self.x}")
        return ((self.x.elem, self.x.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        at = value(self.indices).long().unbind(-1)
        return (value(self.x).index_put(tuple(at), value(self.updates)),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        mode = to.trt.ScatterMode.ND
        layer = to.network.add_scatter(to[self.x], to[self.indices], to[self.updates], mode)
        return [layer.get_output(0)]


@dataclass(frozen=True)
class OneHot(Layer):
    """``values[1]`` at each index of a new dim of ``depth`` entries, ``values[0]`` elsewhere."""

    source = f"{OPERATORS}/OneHot.html"

    indices: Tensor
    values: Tensor
    depth: int
    axis: int = -1

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "indices", self.indices, ("i32",))
        allow(self, "values", self.values, PLAIN)
        if self.values.dims != (2,):
            raise self.refuse(f"values are {self.values}: the off value and the on value")
        axis = axis_of(self, self.axis, len(self.indices.dims) + 1)
        dims = self.indices.dims
        return ((self.values.elem, (*dims[:axis], self.depth, *dims[axis:])),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch

        axis = self.axis % (len(self.indices.dims) + 1)
        classes = torch.arange(self.depth, device=sizes.device)
        hot = (value(self.indices).unsqueeze(-1) == classes).movedim(-1, axis)
        off, on = value(self.values)
        return (torch.where(hot, on, off),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        import torch

        from irloom.ir.elem import ELEMS

        depth = to.constant(ELEMS["i32"], torch.tensor(self.depth, dtype=torch.int32))
        layer = to.network.add_one_hot(to[self.indices], to[self.values], depth, self.axis)
        return [layer.get_output(0)]


def _depth(layer: Layer, x: Tensor, indices: Tensor) -> int:
    """How many dims of ``x`` an index of a gather or scatter of whole slices names."""
    depth: Dim = indices.dims[-1] if indices.dims else 0
    if not isinstance(depth, int) or not 1 <= depth <= len(x.dims):
        raise layer.refuse(f"an index of {indices} names {depth} dims of {x}")
    return depth


def _same_but(layer: Layer, a: Tensor, b: Tensor, axis: int) -> None:
    pairs = enumerate(zip(a.dims, b.dims, strict=False))
    if len(a.dims) != len(b.dims) or any(x != y for i, (x, y) in pairs if i != axis):
        raise layer.refuse(f"{a} and {b} differ in more than dim {axis}")
