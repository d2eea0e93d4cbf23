"""Entries of four bits in floating point, two a byte: MXFP4 and NVFP4.

OCP Microscaling Formats 1.0: one sign bit, two of exponent, one of mantissa; the low half of a byte is first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from irloom.frontends.hf.quantized.core import disagreeing, rows_of
from irloom.frontends.hf.quantized.scaled import SCALES, powers
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.elem import Quant

if TYPE_CHECKING:
    from irloom.ir.quantized import QuantizedTensor

_LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Fp4:
    """``level * scale``, perhaps times or over one scale of the ``whole`` tensor.

    ``turned`` says that the weight is [e, in, out] where bytes are [e, out, groups, bytes of a group].
    """

    packed: str
    scale: str
    whole: str | None
    divides: bool
    turned: bool
    dims: tuple[int, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.packed, self.scale, *([self.whole] if self.whole else []))

    def rows(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        levels = torch.tensor([*_LEVELS, *(-x for x in _LEVELS)])
        data = rows_of(raw, self.packed, start, stop).view(torch.uint8)
        halves = torch.stack([data & 15, data >> 4], dim=-1)
        scale = powers(rows_of(raw, self.scale, start, stop))
        if self.whole:
            whole = raw.read(self.whole).float().reshape(())
            scale = scale / whole if self.divides else scale * whole
        values = levels[halves.int()].reshape(*scale.shape, -1) * scale.unsqueeze(-1)
        values = values.flatten(-2)
        return values.transpose(-1, -2) if self.turned else values

    def kept(self, raw: Checkpoint, quant: Quant) -> QuantizedTensor | None:
        return None


def fp4(raw: Checkpoint) -> dict[str, Fp4]:
    """Every weight of four-bit floats: GPT OSS's, DeepSeek V4's, compressed-tensors', ModelOpt's."""
    names, found = set(raw.names()), dict[str, Fp4]()
    for name in raw.names():
        exponents = next((name + s for s in SCALES if name + s in names), None)
        if raw.elem(name).name == "i8" and exponents and raw.elem(exponents).name == "u8":
            found[name] = _plain(raw, name, exponents, "", divides=False)
        if raw.elem(name).name != "u8":
            continue
        if name.endswith("_blocks"):
            found[name.removesuffix("_blocks")] = _blocks(raw, name)
        elif (weight := name.removesuffix("_packed")) != name and f"{weight}_scale" in names:
            found[weight] = _plain(raw, name, f"{weight}_scale", f"{weight}_global_scale", divides=True)
        elif name.endswith("weight") and f"{name}_scale" in names:
            found[name] = _plain(raw, name, f"{name}_scale", f"{name}_scale_2", divides=False)
    return found


def _blocks(raw: Checkpoint, name: str) -> Fp4:
    scale, dims = name.removesuffix("_blocks") + "_scales", raw.dims(name)
    if len(dims) != 4 or raw.dims(scale) != dims[:-1] or raw.elem(scale).name != "u8":
        raise disagreeing(raw, [name, scale], "no blocks of experts with a scale each")
    experts, out, groups, width = dims
    return Fp4(name, scale, None, divides=False, turned=True, dims=(experts, groups * width * 2, out))


def _plain(raw: Checkpoint, name: str, scale: str, whole: str, *, divides: bool) -> Fp4:
    dims = raw.dims(name)
    known = whole in set(raw.names())
    groups = raw.dims(scale)
    fits = len(groups) == len(dims) and groups[:-1] == dims[:-1] and groups[-1] and not dims[-1] % groups[-1]
    if not fits or (raw.elem(scale).name != "u8" and not known):
        raise disagreeing(raw, [name, scale], "scales do not cover the weight")
    if known and raw.dims(whole) not in {(), (1,)}:
        raise disagreeing(raw, [name, whole], "no single scale")
    return Fp4(name, scale, whole if known else None, divides, False, (*dims[:-1], dims[-1] * 2))
