"""Products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irloom.ir.dims import Dim

from ..network import Inferred, Layer, Sizes, Tensor, Value
from .rules import FLOATS, OPERATORS, allow, same_elem

if TYPE_CHECKING:
    import torch

    from ..emitter import Emitter


@dataclass(frozen=True)
class MatrixMultiply(Layer):
    """``a @ b`` over the last two dims, either transposed first; the dims before them broadcast."""

    source = f"{OPERATORS}/MatrixMultiply.html"

    a: Tensor
    b: Tensor
    transpose_a: bool = False
    transpose_b: bool = False

    def infer(self) -> tuple[Inferred, ...]:
        same_elem(self, self.a, self.b)
        allow(self, "an input", self.a, FLOATS)
        if len(self.a.dims) != len(self.b.dims) or len(self.a.dims) < 2:
            raise self.refuse(f"ranks {len(self.a.dims)} and {len(self.b.dims)}: equal, and at least 2")
        (*left, m, k), (*right, k2, n) = _turned(self.a, self.transpose_a), _turned(self.b, self.transpose_b)
        if k != k2:
            raise self.refuse(f"{self.a} and {self.b} share no dim to sum over: {k} and {k2}")
        if any(x != y and 1 not in (x, y) for x, y in zip(left, right, strict=True)):
            raise self.refuse(f"{self.a} and {self.b} do not broadcast")
        batch = [y if x == 1 else x for x, y in zip(left, right, strict=True)]
        return ((self.a.elem, (*batch, m, n)),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        a, b = value(self.a), value(self.b)
        return ((a.mT if self.transpose_a else a) @ (b.mT if self.transpose_b else b),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        how = to.trt.MatrixOperation
        turn = {False: how.NONE, True: how.TRANSPOSE}
        a, b = to[self.a], to[self.b]
        layer = to.network.add_matrix_multiply(a, turn[self.transpose_a], b, turn[self.transpose_b])
        return [layer.get_output(0)]


def _turned(t: Tensor, transpose: bool) -> tuple[Dim, ...]:
    *batch, m, n = t.dims
    return (*batch, n, m) if transpose else tuple(t.dims)
