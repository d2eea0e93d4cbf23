"""Quantized tensors: rounding to a scheme, back again, and two four-bit values a byte.

``value = (base - zero) * scale`` per group along the last dim, as ``Quant`` describes it. Rounding is to
nearest, with the scale as it is stored, so that a rounded scale costs nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from irloom.ir.elem import ELEMS, Elem, Quant
from irloom.ir.errors import IRError

_CHUNK = 1 << 18  # entries rounded at a time: temporaries that stay in cache, whatever the tensor's size


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """``values`` [.., n] in the dtype of ``quant.base``; ``scales`` and ``zeros`` [.., n / group] in theirs.

    Scales are positive where they were chosen here; those read from a file may have any sign.
    """

    values: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    quant: Quant

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in storage: four-bit values count half a byte."""
        count = self.quant.nbytes(self.dims)
        assert isinstance(count, int)
        return count

    def dequantize(self, elem: Elem = ELEMS["f32"]) -> torch.Tensor:
        """The reference: every entry computed in f32, then rounded to ``elem``."""
        out = torch.empty(self.dims, dtype=elem.torch)
        parts = [out, self.values, self.scales, *([] if self.zeros is None else [self.zeros])]
        for to, values, scales, *zeros in _row_chunks(parts, self.dims[-1]):
            grouped = _grouped(values, scales)
            if zeros:
                grouped = grouped - zeros[0].float().unsqueeze(-1)
            to.copy_((grouped * scales.float().unsqueeze(-1)).flatten(-2))
        return out

    def map(self, move: Callable[[torch.Tensor], torch.Tensor]) -> QuantizedTensor:
        """The same with ``move`` done to values, scales and zeros alike, as moving whole rows is."""
        zeros = None if self.zeros is None else move(self.zeros)
        return QuantizedTensor(move(self.values), move(self.scales), zeros, self.quant)

    def packed(self) -> torch.Tensor:
        """``values`` as an engine stores them: four-bit entries two a byte, others as they are."""
        return pack4(self.values) if self.quant.base.bits == 4 else self.values


def quantize(x: torch.Tensor, quant: Quant) -> QuantizedTensor:
    """Round ``x`` [.., n] to ``quant``, a group of each row at a time."""
    return quantize_blocks([x], tuple(x.shape), quant)


def quantize_blocks(blocks: Iterable[torch.Tensor], dims: tuple[int, ...], quant: Quant) -> QuantizedTensor:
    """Round a tensor of ``dims`` that comes as ``blocks``: row after row, so many rows at a time."""
    if not dims or not dims[-1]:
        raise IRError(f"quantize: {quant.name} needs a last dim to group, but got {list(dims)}")
    scale_dims = [d for d in quant.scale_dims(dims) if isinstance(d, int)]
    values = torch.empty(dims, dtype=quant.base.torch)
    scales = torch.empty(scale_dims, dtype=quant.scale.torch)
    zeros = torch.empty(scale_dims, dtype=quant.zero.torch) if quant.zero else None
    outs = [t.reshape(-1, t.shape[-1]) for t in (values, scales, zeros) if t is not None]
    done = 0
    for block in blocks:
        rows = block.reshape(-1, dims[-1])
        parts = [out[done : done + rows.shape[0]] for out in outs]
        for source, *to in _row_chunks([rows, *parts], dims[-1]):
            _round(source, quant, *to)
        done += rows.shape[0]
    return QuantizedTensor(values, scales, zeros, quant)


def _round(
    rows: torch.Tensor,
    quant: Quant,
    values: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None = None,
) -> None:
    """Round ``rows`` [r, n] into ``values`` [r, n], ``scales`` and ``zeros`` [r, n / group]."""
    low, high = _limits(quant)
    grouped = _grouped(rows, scales)
    least, most = grouped.amin(-1).clamp_(max=0), grouped.amax(-1).clamp_(min=0)
    if quant.zero:
        scales.copy_((most - least) / (high - low))
    else:
        scales.copy_(torch.maximum(most / high, least / low))
    if not torch.isfinite(scales.float()).all():
        raise IRError(
            f"quantize: {quant.name}: a scale does not fit {quant.scale}",
            hint="the weight holds an infinity, a NaN, or entries too large for the scale's element",
        )
    inverse = torch.where(scales == 0, 0.0, 1.0 / scales.float())
    scaled = grouped * inverse.unsqueeze(-1)
    if zeros is not None:
        zeros.copy_(_zero_point(low - least * inverse, quant, low, high))
        scaled += zeros.float().unsqueeze(-1)
    if quant.base.kind != "float":
        scaled.round_()
    values.copy_(scaled.clamp_(low, high).flatten(-2))


def _limits(quant: Quant) -> tuple[float, float]:
    """What rounding may use. Eight bits leave -128 out; of four bits every one of the 16 levels counts."""
    base = quant.base
    if base.kind == "float" and base.bits == 8 and not quant.zero:
        return -torch.finfo(base.torch).max, torch.finfo(base.torch).max
    if base.kind == "uint" and quant.zero:
        return 0, 2**base.bits - 1
    if base.kind == "int" and base.bits <= 8:
        high = 2 ** (base.bits - 1) - 1
        return (-high if base.bits == 8 and not quant.zero else -high - 1), high
    raise IRError(
        f"quantize: {quant.name} = {quant.declaration()} cannot be rounded to",
        hint="use i8 or i4, u8 or u4 with a zero, or f8e4m3 without one",
    )


def _zero_point(exact: torch.Tensor, quant: Quant, low: float, high: float) -> torch.Tensor:
    """A float zero is kept as it is; an integer one is an entry of the base's range."""
    assert quant.zero
    return exact if quant.zero.kind == "float" else exact.round().clamp(low, high)


def _row_chunks(tensors: list[torch.Tensor], width: int) -> list[tuple[torch.Tensor, ...]]:
    """Views of the tensors' matching rows, about ``_CHUNK`` entries of rows of ``width`` at a time."""
    flat = [t.reshape(-1, t.shape[-1]) for t in tensors]
    step = max(_CHUNK // max(width, 1), 1)
    starts = range(0, flat[0].shape[0], step)
    return [tuple(f[start : start + step] for f in flat) for start in starts]


def _grouped(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Rows [r, n] in f32 as groups [r, g, n / g] for scales [r, g]."""
    return rows.float().reshape(*scales.shape, -1)


def pack4(values: torch.Tensor) -> torch.Tensor:
    """Four-bit entries [.., n] as bytes u8[.., n / 2], the first of two in the low half.

    >>> pack4(torch.tensor([[1, -1]], dtype=torch.int8)).tolist()
    [[241]]
    """
    if values.shape[-1] % 2:
        raise IRError(f"pack4: two entries share a byte, but the last dim is {values.shape[-1]}")
    entries = values.view(torch.uint8)
    return (entries[..., 0::2] & 15) | (entries[..., 1::2] << 4)


def unpack4(packed: torch.Tensor, base: Elem = ELEMS["i4"]) -> torch.Tensor:
    """The inverse of ``pack4``: u8[.., n / 2] to entries [.., n] of ``base`` (``i4`` or ``u4``).

    >>> unpack4(torch.tensor([[241]], dtype=torch.uint8)).tolist()
    [[1, -1]]
    """
    halves = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
    return (halves.view(torch.int8) << 4 >> 4) if base.kind == "int" else halves


def concat_quantized(parts: list[QuantizedTensor], dim: int) -> QuantizedTensor:
    """Join along a dim that is not the grouped last one."""
    first = parts[0]
    assert dim != len(first.dims) - 1
    assert all(p.quant == first.quant for p in parts)
    zeros = [p.zeros for p in parts if p.zeros is not None]
    return QuantizedTensor(
        torch.cat([p.values for p in parts], dim),
        torch.cat([p.scales for p in parts], dim),
        torch.cat(zeros, dim) if zeros else None,
        first.quant,
    )
