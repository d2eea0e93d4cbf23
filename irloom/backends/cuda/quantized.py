"""Quantized tensors on the device: entries and scales, as kernels take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from irloom.ir.elem import Quant
from irloom.ir.quantized import QuantizedTensor, unpack4


@dataclass(frozen=True)
class Quantized:
    """``values`` in the layout ``form``, ``scales`` (and ``zeros``) as ``quant`` describes them.

    ``form`` ``rows`` is as a checkpoint has it: values [.., k] in the base's dtype, four-bit ones two a byte
    (``pack4``: u8 [.., k / 2], the first in the low half), scales [.., k / group], or [.., 1] for a row.
    Products take four-bit weights as ``fragments`` too, which see. Activations are ``rows``.
    """

    values: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    quant: Quant
    form: str = "rows"

    def dequantized(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Every entry computed in f32, of ``rows``."""
        assert self.form == "rows", "products alone read what lies in fragments"
        four = self.quant.base.bits == 4
        values = unpack4(self.values, self.quant.base) if four else self.values
        return QuantizedTensor(values, self.scales, self.zeros, self.quant).dequantize().to(dtype)


Operand = torch.Tensor | Quantized


def values_of(x: Operand) -> torch.Tensor:
    """The entries, as they are stored."""
    return x.values if isinstance(x, Quantized) else x


def scales_of(x: Operand) -> torch.Tensor | None:
    """The scales, where there are any."""
    return x.scales if isinstance(x, Quantized) else None


def within(x: torch.Tensor, quant: Quant) -> Quantized:
    """Rows rounded to ``quant`` in the memory of plain ones [rows, k], ``k`` and groups multiples of 16:
    entries, then scales, those of consecutive rows side by side.
    """
    (rows, k), memory = x.shape, x.view(-1).view(torch.uint8)
    groups, entries = k // (quant.group or k), x.numel() * quant.base.torch.itemsize
    scales = memory[entries : entries + rows * groups * quant.scale.torch.itemsize]
    values = memory[:entries].view(quant.base.torch).view(rows, k)
    return Quantized(values, scales.view(quant.scale.torch).view(groups, rows).t(), None, quant)
