"""Entries of eight bits times scales: FP8 and INT8, a scale for a tensor, a row, a group, or a block of both.

DeepSeek V3 and its kind (``weight_scale_inv``, blocks of 128 by 128), compressed-tensors, FBGEMM, ModelOpt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from irloom.frontends.hf.quantized.core import disagreeing, rows_of
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.elem import Quant

if TYPE_CHECKING:
    from irloom.ir.quantized import QuantizedTensor

Block = tuple[int, int]
SCALES = ("_scale_inv", "_scale")
_EIGHT_BITS = {"f8e4m3", "f8e5m2", "i8"}


@dataclass(frozen=True)
class Scaled:
    """``(values - zero) * scale``; ``steps`` are the entries along each dim that share a scale."""

    values: str
    scale: str
    zero: str | None
    dims: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.values, self.scale, *([self.zero] if self.zero else []))

    def rows(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        values = rows_of(raw, self.values, start, stop).float()
        if self.zero:
            values -= self._spread(raw.read(self.zero).float(), start, stop)
        return values.mul_(self._spread(powers(raw.read(self.scale)), start, stop))

    def _spread(self, scale: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """The scales of some rows, each repeated to the entries that share it."""
        scale = scale.reshape(*scale.shape, *[1] * (len(self.dims) - scale.ndim))
        first = start // self.steps[0]
        scale = scale[first : -(-stop // self.steps[0])]
        for dim, (step, size) in enumerate(zip(self.steps, self.dims, strict=True)):
            if step < size and step > 1:
                scale = scale.repeat_interleave(step, dim)
            if dim and scale.shape[dim] > 1:
                scale = scale.narrow(dim, 0, size)
        at = start - first * self.steps[0]
        return scale[at : at + stop - start] if scale.shape[0] > 1 else scale

    def kept(self, raw: Checkpoint, quant: Quant) -> QuantizedTensor | None:
        """Where scales are for the scheme's blocks, in an element that the scheme's holds."""
        from irloom.ir.quantized import QuantizedTensor

        height, width = (1, *self.dims)[-2:]
        stored = (1, *self.steps)[-2:]
        wanted = (min(quant.rows or height, height), quant.group or width)
        same = (raw.elem(self.values), None) == (quant.base, quant.zero) and not self.zero
        if not same or stored != wanted or set(self.steps[:-2]) - {1}:
            return None
        scales = powers(raw.read(self.scale))
        rounded = scales.to(quant.scale.torch)
        if not torch.equal(rounded.float(), scales):
            return None
        shape = [d for d in quant.scale_dims(self.dims) if isinstance(d, int)]
        return QuantizedTensor(raw.read(self.values), rounded.reshape(shape), None, quant)


def powers(scale: torch.Tensor) -> torch.Tensor:
    """Scales in f32. Those in bytes are exponents of two, biased by 127."""
    if scale.dtype == torch.uint8:
        return torch.ldexp(torch.ones(scale.shape), scale.int() - 127)
    return scale.float()


def scaled(raw: Checkpoint, blocks: Iterable[Block]) -> dict[str, Scaled]:
    """Every weight of eight bits that has a scale; ``blocks`` are the sizes that the config speaks of."""
    names, found = set(raw.names()), dict[str, Scaled]()
    for name in raw.names():
        scale = next((name + s for s in SCALES if name + s in names), None)
        if scale is None or raw.elem(name).name not in _EIGHT_BITS or not raw.dims(name):
            continue
        if raw.elem(name).name == "i8" and raw.elem(scale).name == "u8":
            continue  # four-bit floats, two a byte
        zero = f"{name}_zero_point" if f"{name}_zero_point" in names else None
        dims = raw.dims(name)
        steps = next((s for b in [*blocks, (1, 1)] if (s := _steps(dims, raw.dims(scale), b))), None)
        if steps is None or (zero and raw.dims(zero) != raw.dims(scale)):
            raise disagreeing(raw, [name, scale, *([zero] if zero else [])], "scales do not cover the weight")
        found[name] = Scaled(name, scale, zero, dims, steps)
    return found


def _steps(dims: tuple[int, ...], scale: tuple[int, ...], block: Block) -> tuple[int, ...] | None:
    """Entries along each dim that share a scale, for blocks of ``block``; None where they do not fit."""
    scale = scale + (1,) * (len(dims) - len(scale))
    blocks = (1,) * (len(dims) - 2) + block[-min(len(dims), 2) :]
    if len(scale) > len(dims):
        return None
    steps: list[int] = []
    for size, count, step in zip(dims, scale, blocks, strict=True):
        if count == 1:
            steps.append(max(size, 1))
        elif count == -(-size // step):
            steps.append(step)
        elif count == size:
            steps.append(1)
        else:
            return None
    return tuple(steps)
