"""Weights repacked for the kernels: panels of sixteen output rows, interleaved along k (``weight.h``).

A vector load then brings the same k of sixteen rows, a decode step reads the weight as one sequential stream,
and the same bytes serve as the embedding table of a tied model.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["f32", "bf16", "f16", "i8", "i4"]
FloatKind = Literal["f32", "bf16", "f16"]
_KINDS = ("f32", "bf16", "f16", "i8", "i4")
_NAMES: dict[torch.dtype, FloatKind] = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
PANEL = 16
HUGE = 2 << 20
CHUNK = 1 << 24  # values repacked at a time, so that packing needs little memory beside the result


class Descriptor(ctypes.Structure):
    """``struct Weight`` of ``kernels/weight.h``."""

    _fields_ = [("data", ctypes.c_void_p), ("bias", ctypes.c_void_p)] + [
        (name, ctypes.c_int64)
        for name in (
            "N",
            "K",
            "kind",
            "depth",
            "group",
            "scale",
            "has_zeros",
            "int8_activations",
            "panel",
            "scales",
            "zeros",
        )
    ]


def allocate(nbytes: int) -> Tensor:
    """Zeroed u8 [nbytes], in huge pages where the system grants them: a decode step walks every page."""
    if nbytes < HUGE:
        return torch.zeros(nbytes, dtype=torch.uint8)
    memory = mmap.mmap(-1, _up(nbytes, HUGE))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:nbytes]


def _up(n: int, to: int) -> int:
    return (n + to - 1) // to * to


@dataclass(frozen=True)
class Layout:
    """Where everything of a packed weight lies; with the bytes, all there is to store in an engine.

    ``group`` is the values of k per scale (K itself: one scale a row); ``scale`` the element of the scales. A
    weight of experts is a ``stack`` of matrices, each packed by itself, one after another.

    >>> Layout(1024, 640, "i4", group=32, scale="f16").bytes / (1024 * 640)
    0.5625
    """

    n: int
    k: int
    kind: Kind
    group: int = 0
    scale: FloatKind = "f32"
    has_zeros: bool = False
    stack: int = 1

    def __post_init__(self) -> None:
        assert self.n > 0 and self.k > 0
        assert not self.low_bit or self.group == self.k or self.group % 32 == 0, (
            "a group is whole blocks of 32"
        )

    @property
    def low_bit(self) -> bool:
        return self.kind in ("i8", "i4")

    @property
    def depth(self) -> int:
        return _up(self.k, 32) if self.low_bit else self.k

    @property
    def groups(self) -> int:
        return _up(self.k, self.group) // self.group if self.low_bit else 0

    @property
    def scales(self) -> int:
        """Byte offset of a panel's scales."""
        bits = {"f32": 32, "bf16": 16, "f16": 16, "i8": 8, "i4": 4}[self.kind]
        return _up(self.depth * PANEL * bits // 8, 64)

    @property
    def zeros(self) -> int:
        """Byte offset of a panel's zero points."""
        return self.scales + _up(self.groups * PANEL * (4 if self.scale == "f32" else 2), 64)

    @property
    def panel(self) -> int:
        return self.zeros + (_up(self.groups * PANEL, 64) if self.has_zeros else 0)

    @property
    def panels(self) -> int:
        return _up(self.n, PANEL) // PANEL

    @property
    def each(self) -> int:
        """Bytes of one matrix."""
        return self.panels * self.panel

    @property
    def bytes(self) -> int:
        return self.stack * self.each


@dataclass(frozen=True)
class Packed:
    """A packed weight and the descriptor that kernels take (``address``). Keeps its memory alive.

    ``int8_activations``: low-bit products round the activations to int8 per 32 values and use integer dot
    products; without it the weight is widened to fp32 and the activations are exact.
    """

    layout: Layout
    data: Tensor  # u8 [layout.bytes]
    bias: Tensor | None = None  # f32 [n], or [stack, n]
    int8_activations: bool = True
    descriptor: Descriptor = field(init=False, repr=False)
    address: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        at, bias = self.layout, self.bias
        assert self.data.dtype == torch.uint8 and self.data.numel() == at.bytes and self.data.is_contiguous()
        assert bias is None or (
            bias.dtype == torch.float32 and bias.numel() == at.stack * at.n and bias.is_contiguous()
        )
        scale = _KINDS.index(at.scale)
        group = _up(at.group, 32) if at.low_bit else 1
        numbers = (
            at.n,
            at.k,
            _KINDS.index(at.kind),
            at.depth,
            group,
            scale,
            at.has_zeros,
            self.int8_activations,
        )
        offsets = (at.panel, at.scales, at.zeros)
        pointers = (self.data.data_ptr(), None if bias is None else bias.data_ptr())
        descriptor = Descriptor(*pointers, *numbers, *offsets)
        object.__setattr__(self, "descriptor", descriptor)
        object.__setattr__(self, "address", ctypes.addressof(descriptor))


def _runs(layout: Layout) -> Iterator[tuple[int, int]]:
    step = max(1, CHUNK // (layout.depth * PANEL))
    for p in range(0, layout.panels, step):
        yield p, min(p + step, layout.panels)


def _rows(x: Tensor, p0: int, p1: int, width: int) -> Tensor:
    """Rows of panels [p0, p1) of ``x``, padded with zeros to whole panels and to ``width`` columns."""
    part = x[p0 * PANEL : p1 * PANEL]
    padded = part.new_zeros((p1 - p0) * PANEL, width)
    padded[: part.shape[0], : part.shape[1]] = part
    return padded


def _put(out: Tensor, p0: int, p1: int, offset: int, values: Tensor) -> None:
    """Writes ``values`` [panels, ...] at a byte offset within each panel of ``out`` [panels, panel]."""
    flat = values.contiguous().view(p1 - p0, -1).view(torch.uint8)
    out[p0:p1, offset : offset + flat.shape[1]] = flat


def pack(weight: Tensor, bias: Tensor | None = None) -> Packed:
    """Pack a float weight [N, K] in its own element (f32, bf16 or f16)."""
    n, k = weight.shape
    layout = Layout(n, k, _NAMES[weight.dtype])
    out = allocate(layout.bytes)
    values = out.view(weight.dtype).view(layout.panels, -1)[:, : k * PANEL].unflatten(1, (k, PANEL))
    for p0, p1 in _runs(layout):
        whole = p1 * PANEL <= n
        rows = weight[p0 * PANEL : p1 * PANEL] if whole else _rows(weight, p0, p1, k)
        values[p0:p1] = rows.view(p1 - p0, PANEL, k).transpose(1, 2)
    return Packed(layout, out, _bias(bias))


def pack_quantized(
    values: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    *,
    bits: int,
    group: int,
    signed: bool = True,
    bias: Tensor | None = None,
    int8_activations: bool = True,
) -> Packed:
    """Pack integers [N, K] (one value an element, any integer dtype) that mean ``(value - zero) * scale``.

    ``scales`` and ``zeros`` are [N, ceil(K / group)]; scales stay in their own element (f32, bf16, f16).
    Values are in [-8, 7] or [-128, 127] when ``signed``, else in [0, 15] or [0, 255]; zeros likewise.
    """
    assert bits in (4, 8)
    lift = 0 if not signed else 8 if bits == 4 else 128
    if zeros is None and not signed:
        zeros = torch.zeros(scales.shape, dtype=torch.int32)
    n, k = values.shape
    layout = Layout(n, k, "i4" if bits == 4 else "i8", group, _NAMES[scales.dtype], zeros is not None)
    assert scales.shape == (n, layout.groups), "one scale for each group of each row"
    out = allocate(layout.bytes).view(layout.panels, layout.panel)
    for p0, p1 in _runs(layout):
        lifted = _rows(values, p0, p1, layout.depth).to(torch.int16) + lift
        _put(out, p0, p1, 0, _interleave(lifted.to(torch.uint8), p1 - p0, bits))
        _put(
            out,
            p0,
            p1,
            layout.scales,
            _rows(scales, p0, p1, layout.groups).view(p1 - p0, PANEL, -1).transpose(1, 2),
        )
        if zeros is not None:
            lifted_zeros = (_rows(zeros, p0, p1, layout.groups).to(torch.int16) + lift).to(torch.uint8)
            _put(out, p0, p1, layout.zeros, lifted_zeros.view(p1 - p0, PANEL, -1).transpose(1, 2))
    return Packed(layout, out.view(-1), _bias(bias), int8_activations)


def _interleave(rows: Tensor, panels: int, bits: int) -> Tensor:
    """u8 [panels * 16, depth] to [panels, depth / 4, 16, 4]; with four bits, two quads of k a byte."""
    quads = rows.view(panels, PANEL, -1, 4).transpose(1, 2)
    if bits == 8:
        return quads
    low, high = quads[:, 0::2], quads[:, 1::2]
    return low | (high << 4)


def _bias(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(torch.float32).contiguous()
