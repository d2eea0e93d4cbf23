"""Numbers of eight and four bits, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irloom.ir.dims import Dim
from irloom.ir.elem import ELEMS, Elem

from ..network import Inferred, Layer, Sizes, Tensor, Value
from .rules import FLOATS, OPERATORS, QUANTIZED, allow, axis_of, with_dim

if TYPE_CHECKING:
    import torch

    from ..emitter import Emitter

I8, I4, F8, F4, E8 = (ELEMS[name] for name in ("i8", "i4", "f8e4m3", "f4e2m1", "f8e8m0"))


def _check_scale(layer: Layer, x: Tensor, scale: Tensor, axis: int | None, kind: Elem, plain: Elem) -> None:
    """Refuse a scale of a ``kind`` that is neither one number, one an entry of ``axis``, nor one a block.

    Scales of blocks have the element ``plain`` of what is quantized or comes back, or are powers of two.
    """
    if not scale.dims:
        return
    if axis is not None:
        if scale.dims != (x.dims[axis_of(layer, axis, len(x.dims))],):
            raise layer.refuse(f"{scale} is not one an entry of dim {axis} of {x}")
        return
    pairs = list(zip(x.dims, scale.dims, strict=False))
    if len(scale.dims) != len(x.dims) or any(not _divides(s, d) for d, s in pairs):
        raise layer.refuse(f"{scale} is neither one number nor one a block of {x}")
    if kind == I4 and sum(d != s for d, s in pairs) > 1:
        raise layer.refuse(f"{scale}: i4 is blocked along one dim")
    if scale.elem != plain and scale.elem != E8:
        raise layer.refuse(f"scales of blocks are {scale.elem}, not {plain}")


def _divides(blocks: Dim, entries: Dim) -> bool:
    if blocks == entries:
        return True
    return isinstance(blocks, int) and isinstance(entries, int) and entries % blocks == 0


def _say_blocks(made: Any, x: Tensor, scale: Tensor, axis: int | None, kind: Elem) -> None:
    """Tell the API how values and scales belong together; of i4 it works that out by itself."""
    if axis is not None:
        made.axis = axis % len(x.dims)
    elif scale.dims and kind != I4:
        pairs = zip(x.dims, scale.dims, strict=True)
        made.block_shape = tuple(1 if d == s else int(str(d)) // int(str(s)) for d, s in pairs)


def _scales(scale: torch.Tensor, like: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Scales in f32, with the dims of what they scale."""
    scale = scale.float()
    if scale.dim() == 0:
        return scale
    if axis is not None:
        return scale.reshape([-1 if i == axis % like.dim() else 1 for i in range(like.dim())])
    for i, n in enumerate(like.shape):
        scale = scale.repeat_interleave(n // scale.shape[i], i)
    return scale


def to_quantized(x: torch.Tensor, elem: Elem) -> torch.Tensor:
    """The nearest values that ``elem`` has, ties to even, saturated."""
    import torch

    if elem.kind == "int":
        low, high = -(2 ** (elem.bits - 1)), 2 ** (elem.bits - 1) - 1
        return x.round().clamp(low, high).to(torch.int8)
    if elem == F4:
        grid = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], device=x.device)
        middle = (grid[1:] + grid[:-1]) / 2
        middle[1::2] = middle[1::2].nextafter(torch.zeros_like(middle[1::2]))
        x = grid[torch.bucketize(x.abs().float(), middle)].copysign(x.float())
    return x.clamp(-448, 448).to(torch.float8_e4m3fn)


@dataclass(frozen=True)
class Quantize(Layer):
    """``x / scale``, rounded to ``elem``.

    ``scale`` is one number, one an entry of ``axis``, or, without an axis, of the rank of ``x`` with one a
    block. ``DynamicQuantize`` finds scales while it runs.
    """

    source = f"{OPERATORS}/Quantize.html"

    x: Tensor
    scale: Tensor
    elem: Elem
    axis: int | None = None

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "x", self.x, FLOATS)
        allow(self, "scale", self.scale, FLOATS)
        if self.elem.name not in QUANTIZED:
            raise self.refuse(f"to {self.elem}, not one of {', '.join(QUANTIZED)}")
        _check_scale(self, self.x, self.scale, self.axis, self.elem, self.x.elem)
        if self.elem == F4 and self.scale.dims and self.axis is None:
            raise self.refuse("blocks of f4e2m1 are DynamicQuantize's")
        return ((self.elem, self.x.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        x = value(self.x)
        return (to_quantized(x.float() / _scales(value(self.scale), x, self.axis), self.elem),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        layer = to.network.add_quantize(to[self.x], to[self.scale], to.dtype(self.elem))
        _say_blocks(layer, self.x, self.scale, self.axis, self.elem)
        return [layer.get_output(0)]


@dataclass(frozen=True)
class Dequantize(Layer):
    """``x * scale`` in ``elem``; ``scale`` as in ``Quantize``."""

    source = f"{OPERATORS}/Dequantize.html"

    x: Tensor
    scale: Tensor
    elem: Elem
    axis: int | None = None

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "x", self.x, QUANTIZED)
        allow(self, "scale", self.scale, (*FLOATS, *(["f8e8m0"] if self.x.elem == F8 else [])))
        if self.elem.name not in FLOATS:
            raise self.refuse(f"to {self.elem}, not one of {', '.join(FLOATS)}")
        _check_scale(self, self.x, self.scale, self.axis, self.x.elem, self.elem)
        return ((self.elem, self.x.dims),)

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        x = value(self.x)
        return ((x.float() * _scales(value(self.scale), x, self.axis)).to(self.elem.torch),)

    def emit(self, to: Emitter) -> Sequence[Any]:
        layer = to.network.add_dequantize(to[self.x], to[self.scale], to.dtype(self.elem))
        _say_blocks(layer, self.x, self.scale, self.axis, self.x.elem)
        return [layer.get_output(0)]


@dataclass(frozen=True)
class DynamicQuantize(Layer):
    """Blocks of ``x`` in f4e2m1 (NVFP4) or f8e4m3 (MXFP8), and the scale of each.

    NVFP4: blocks of 16, scales of f8e4m3, which are first divided by ``scale``, a constant number.
    MXFP8: blocks of 32, scales of f8e8m0, no ``scale``. The blocked axis is the last or the one before.
    """

    source = f"{OPERATORS}/DynamicQuantize.html"

    x: Tensor
    scale: Tensor | None
    elem: Elem
    axis: int = -1

    @property
    def block(self) -> int:
        """Entries that share a scale."""
        return 16 if self.elem == F4 else 32

    def infer(self) -> tuple[Inferred, ...]:
        allow(self, "x", self.x, FLOATS)
        if self.elem not in (F4, F8):
            raise self.refuse(f"to {self.elem}, not f4e2m1 or f8e4m3")
        if (self.scale is None) != (self.elem == F8):
            raise self.refuse("f4e2m1 needs a scale of its scales, f8e4m3 has none")
        rank = len(self.x.dims)
        axis = axis_of(self, self.axis, rank)
        if rank not in (2, 3) or axis < rank - 2:
            raise self.refuse(f"{self.x}, axis {axis}: 2 or 3 dims, one of the last two blocked")
        entries = self.x.dims[axis]
        if not isinstance(entries, int) or entries % self.block:
            raise self.refuse(f"blocks of {self.block} do not divide the {entries} entries of {self.x}")
        kind = F8 if self.elem == F4 else E8
        return (self.elem, self.x.dims), (kind, with_dim(self.x, axis, entries // self.block))

    def run(self, value: Value, sizes: Sizes) -> tuple[torch.Tensor, ...]:
        import torch

        x, axis = value(self.x).float(), self.axis % len(self.x.dims)
        most = x.unflatten(axis, (-1, self.block)).abs().amax(axis + 1)
        if self.scale is not None:
            scale = to_quantized(most / 6 / value(self.scale).float(), F8)
            used = scale.float() * value(self.scale).float()
        else:
            scale = torch.exp2((most / 448).log2().ceil().clamp(-127, 127)).to(torch.float8_e8m0fnu)
            used = scale.float()
        used = used.repeat_interleave(self.block, axis)
        return to_quantized(torch.where(used == 0, 0, x / used), self.elem), scale

    def emit(self, to: Emitter) -> Sequence[Any]:
        elem, kind = to.dtype(self.elem), to.dtype(F8 if self.elem == F4 else E8)
        if self.scale is not None:
            axis = self.axis % len(self.x.dims)
            layer = to.network.add_dynamic_quantize(to[self.x], axis, self.block, elem, kind)
            layer.set_input(1, to[self.scale])
        else:
            shape = [1] * len(self.x.dims)
            shape[self.axis] = self.block
            layer = to.network.add_dynamic_quantize_v2(to[self.x], tuple(shape), elem, kind)
        return [layer.get_output(0), layer.get_output(1)]
