"""Quantized tensors: rounding to a scheme, back again, and two four-bit values a byte.

``value = (base - zero) * scale``, with a scale for each block of rows and entries, as ``Quant`` describes it.
Rounding is to nearest, with the scale as it is stored, so that a rounded scale costs nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from irloom.ir.elem import ELEMS, Elem, Quant, elem_of
from irloom.ir.errors import IRError

_CHUNK = 1 << 18  # entries rounded at a time: temporaries that stay in cache, whatever the tensor's size
_DEVICE_CHUNK = 1 << 26  # the same where a kernel is started for each


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """``values`` [.., n] in the dtype of ``quant.base``; ``scales`` and ``zeros`` [.., n / group] in theirs.

    Where rows share scales, there are as many rows of them fewer. Scales are positive where they were chosen
    here; those read from a file may have any sign.
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
        out = torch.empty(self.dims, dtype=elem.torch, device=self.values.device)
        beside = [_every_row(t, self.dims, self.quant) for t in (self.scales, self.zeros) if t is not None]
        for to, values, scales, *zeros in _row_chunks([out, self.values, *beside], self.dims[-1]):
            grouped = _grouped(values, scales.shape[-1])
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
    """Round ``x`` [.., n] to ``quant``, a group of each row or block of rows at a time."""
    return quantize_blocks([x], tuple(x.shape), quant)


def quantize_blocks(blocks: Iterable[torch.Tensor], dims: tuple[int, ...], quant: Quant) -> QuantizedTensor:
    """Round a tensor of ``dims`` that comes as ``blocks``: row after row, so many rows at a time.

    Memory beside the result is that of the rows that share a scale, and of a block.
    """
    made = _nearest(blocks, dims, quant)
    if not torch.isfinite(made.scales.float()).all():
        raise IRError(
            f"quantize: {quant.name}: a scale does not fit {quant.scale}",
            hint="the weight holds an infinity, a NaN, or entries too large for the scale's element",
        )
    return made


def round_trip(x: torch.Tensor, quant: Quant) -> torch.Tensor:
    """``x`` [.., n] rounded to ``quant`` and back, in its own element: activations, of which some may be NaN.

    Where a NaN or an infinity shares a scale, all that do become NaN.
    """
    return _nearest([x], tuple(x.shape), quant).dequantize(elem_of(x.dtype))


def _nearest(blocks: Iterable[torch.Tensor], dims: tuple[int, ...], quant: Quant) -> QuantizedTensor:
    if not dims or not dims[-1]:
        raise IRError(f"quantize: {quant.name} needs a last dim to group, but got {list(dims)}")
    scale_dims = [d for d in quant.scale_dims(dims) if isinstance(d, int)]
    outs: list[torch.Tensor] = []
    at = scaled = 0
    for strip, rows in _strips(blocks, dims, quant):
        if not outs:
            outs = _results(dims, scale_dims, quant, strip.device)
        values, *beside = (t.reshape(-1, t.shape[-1]) for t in outs)
        _round(strip, quant, values[at : at + len(strip)], *(t[scaled : scaled + rows] for t in beside))
        at, scaled = at + len(strip), scaled + rows
    values, scales, *zeros = outs or _results(dims, scale_dims, quant, torch.device("cpu"))
    return QuantizedTensor(values, scales, zeros[0] if zeros else None, quant)


def _results(
    dims: tuple[int, ...], scale_dims: list[int], quant: Quant, device: torch.device
) -> list[torch.Tensor]:
    """Memory for values, scales, and zeros where there are such."""
    kinds = [quant.scale, *([quant.zero] if quant.zero else [])]
    values = torch.empty(dims, dtype=quant.base.torch, device=device)
    return [values, *(torch.empty(scale_dims, dtype=kind.torch, device=device) for kind in kinds)]


def _strips(
    blocks: Iterable[torch.Tensor], dims: tuple[int, ...], quant: Quant
) -> Iterator[tuple[torch.Tensor, int]]:
    """The rows of ``blocks``, those together that share scales; with each strip how many rows of scales."""
    *_, height, width = (1, *dims)
    if quant.rows == 1 or len(dims) < 2:
        for block in blocks:
            yield from ((part, len(part)) for (part,) in _row_chunks([block], width))
        return
    tall, left = min(quant.rows or height, height), height
    held = list[torch.Tensor]()  # rows of a block that is not whole yet
    for block in blocks:
        rows = block.reshape(-1, width)
        while taken := _whole(sum(map(len, held)) + len(rows), left, tall):
            missing = taken - sum(map(len, held))
            strip = torch.cat([*held, rows[:missing]]) if held else rows[:missing]
            held, rows, left = [], rows[missing:], left - taken or height
            yield strip, -(-taken // tall)
        held += [rows] if len(rows) else []


def _whole(there: int, left: int, tall: int) -> int:
    """How many rows of those that are there make whole blocks, of a matrix that has ``left`` more.

    >>> [_whole(there, 300, 128) for there in (100, 200, 300)], _whole(44, 44, 128)
    ([0, 128, 256], 44)
    """
    return left if there >= left <= tall else min(there, left) // tall * tall


def _round(
    rows: torch.Tensor,
    quant: Quant,
    values: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None = None,
) -> None:
    """Round ``rows`` [r, n] into ``values`` [r, n], with ``scales`` and ``zeros`` [r / rows, n / group]."""
    low, high = _limits(quant)
    groups, tall = scales.shape[-1], -(-len(rows) // len(scales))
    chunks = _row_chunks([rows, values], rows.shape[-1])
    held = [_grouped(rows, groups)] if len(chunks) == 1 else []  # else each chunk is widened twice
    found = [_extremes(x) for x in held or (_grouped(part, groups) for part, _ in chunks)]
    least, most = found[0]
    if len(found) > 1:
        least, most = torch.cat([low for low, _ in found]), torch.cat([high for _, high in found])
    if tall > 1:
        least, most = least.reshape(-1, tall, groups).amin(1), most.reshape(-1, tall, groups).amax(1)
    if quant.zero:
        scales.copy_(_divided(most - least, high - low))
    else:
        scales.copy_(torch.maximum(_divided(most, high), _divided(least, low)))
    inverse = torch.where(scales == 0, 0.0, 1.0 / scales.float())
    if zeros is not None:
        zeros.copy_(_zero_point(low - least * inverse, quant, low, high))
    beside = [inverse, *([] if zeros is None else [zeros.float()])]
    every = [t.repeat_interleave(tall, 0) if tall > 1 else t for t in beside]
    for part, to, by, *shift in _row_chunks([rows, values, *every], rows.shape[-1]):
        scaled = (held[0] if held else _grouped(part, groups)) * by.unsqueeze(-1)
        if shift:
            scaled += shift[0].unsqueeze(-1)
        if quant.base.kind != "float":
            scaled.round_()
        to.copy_(scaled.clamp_(low, high).flatten(-2))


def _divided(x: torch.Tensor, by: float) -> torch.Tensor:
    """``x / by`` to the nearest: by a number a GPU takes its inverse times ``x``, a bit off at times."""
    return x / torch.full((), by, dtype=x.dtype, device=x.device)


def _extremes(grouped: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest entry of each group, 0 among them."""
    return grouped.amin(-1).clamp_(max=0), grouped.amax(-1).clamp_(min=0)


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
    """Views of the tensors' matching rows, some entries of rows of ``width`` at a time."""
    flat = [t.reshape(-1, t.shape[-1]) for t in tensors]
    step = max((_DEVICE_CHUNK if flat[0].is_cuda else _CHUNK) // max(width, 1), 1)
    starts = range(0, flat[0].shape[0], step)
    return [tuple(f[start : start + step] for f in flat) for start in starts]


def _grouped(rows: torch.Tensor, groups: int) -> torch.Tensor:
    """Rows [r, n] in f32 as [r, groups, n / groups]."""
    return rows.float().reshape(len(rows), groups, -1)


def _every_row(scales: torch.Tensor, dims: tuple[int, ...], quant: Quant) -> torch.Tensor:
    """Scales, or zeros, with a row for each row of a tensor of ``dims``."""
    if quant.rows == 1 or len(dims) < 2:
        return scales
    if not quant.rows:
        return scales.expand(*dims[:-1], scales.shape[-1])
    return scales.repeat_interleave(quant.rows, -2).narrow(-2, 0, dims[-2])


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
    """Join along a dim in which no two parts share a scale."""
    first = parts[0]
    assert joins(first.quant, dim, [p.dims for p in parts])
    assert all(p.quant == first.quant for p in parts)
    zeros = [p.zeros for p in parts if p.zeros is not None]
    return QuantizedTensor(
        torch.cat([p.values for p in parts], dim),
        torch.cat([p.scales for p in parts], dim),
        torch.cat(zeros, dim) if zeros else None,
        first.quant,
    )


def joins(quant: Quant, dim: int, parts: Sequence[tuple[int, ...]]) -> bool:
    """Whether tensors of these dims, each rounded by itself, are side by side along ``dim`` what rounding
    all of them together gives.
    """
    away = len(parts[0]) - dim
    if away == 2 and quant.rows != 1:
        return quant.rows > 0 and all(d[dim] % quant.rows == 0 for d in parts[:-1])
    return away > 1
