"""Normalization over axes or groups of channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..network import Inferred, Layer, Sizes, Tensor, Value
from .rules import FLOATS, OPERATORS, allow, axes_mask, axis_of, same_elem

if TYPE_CHECKING:
    import torch

    from ..emitter import Emitter


@dataclass(frozen=True)
class Normalization(Layer):
    """``(x - mean) / sqrt(variance + eps) * scale + bias`` over ``axes``: layer norm, not RMS norm.

    There is no layer that leaves the mean in: RMS norm is its product, mean, root and quotient. ``scale``
    and ``bias`` have the rank of ``x``. With ``groups`` > 1 the channels (dim 1) are normalized in groups.
    """

    source = f"{OPERATORS}/Normalization.html"

    x: Tensor
    scale: Tensor
    bias: Tensor
    axes: tuple[int, ...]
    eps: float = 1e-5
    groups: int = 1

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "x", self.x, FLOATS)
        same_elem(self, self.x, self.scale, self.bias)
        rank = len(self.x.dims)
        if self.scale.dims != self.bias.dims or len(self.scale.dims) != rank:
            raise self.refuse(f"{self.scale} and {self.bias}: equal dims, of the rank of {self.x}")
        if any(s not in (1, d) for s, d in zip(self.scale.dims, self.x.dims, strict=True)):
            raise self.refuse(f"{self.scale} does not broadcast to {self.x}")
        if not self.axes:
            raise self.refuse("no axes")
        for a in self.axes:
            axis_of(self, a, rank)
        channels = self.x.dims[1] if rank > 1 else 1
        if self.groups != 1 and (not isinstance(channels, int) or channels % self.groups):
            raise self.refuse(f"{self.groups} groups do not divide the {channels} channels of {self.x}")
        return ((self.x.elem, self.x.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        x = value(self.x)
        y, axes = x.float(), tuple(self.axes)
        if self.groups > 1:
            y = y.reshape(x.shape[0], self.groups, -1)
            axes = (2,)
        centred = y - y.mean(axes, keepdim=True)
        normal = centred / (centred.square().mean(axes, keepdim=True) + self.eps).sqrt()
        out = normal.reshape(x.shape) * value(self.scale).float() + value(self.bias).float()
        return (out.to(x.dtype),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        mask = axes_mask(self.axes, len(self.x.dims))
        layer = to.network.add_normalization_v2(to[self.x], to[self.scale], to[self.bias], mask)
        layer.epsilon = self.eps
        layer.num_groups = self.groups
        return [layer.get_output(0)]
