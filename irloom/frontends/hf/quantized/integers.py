"""Integers packed into words of 32 bits, in groups with a scale: GPTQ, AWQ, and compressed-tensors.

Each stores the same three things (codes, zeros, scales) in its own order of dims and bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from irloom.frontends.hf.quantized.core import disagreeing, rows_of
from irloom.ir.checkpoint import Checkpoint
from irloom.ir.elem import Quant

if TYPE_CHECKING:
    from irloom.ir.quantized import QuantizedTensor

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output that each four bits of a word are of


class Layout(Protocol):
    """Where a method of quantization leaves what a weight is made of. Rows are the weight's: outputs."""

    @property
    def parts(self) -> tuple[str, ...]: ...

    def codes(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Unsigned codes, i32[rows, in]."""
        ...

    def zeros(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """The code that stands for 0, i32[rows, groups] or for all."""
        ...

    def scales(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """[rows, groups]."""
        ...

    def order(self, raw: Checkpoint) -> torch.Tensor | None:
        """The group of each input, where groups are not runs of inputs."""
        ...


@dataclass(frozen=True)
class Integers:
    """``(code - zero) * scale``."""

    layout: Layout
    bits: int
    dims: tuple[int, int]

    @property
    def parts(self) -> tuple[str, ...]:
        return self.layout.parts

    def rows(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        at = self.layout
        codes, zeros = at.codes(raw, start, stop), at.zeros(raw, start, stop)
        scales, order = at.scales(raw, start, stop).float(), at.order(raw)
        if order is None:
            grouped = codes.reshape(*scales.shape, -1) - zeros.unsqueeze(-1)
            return (grouped * scales.unsqueeze(-1)).flatten(-2)
        zeros = zeros.expand(scales.shape)
        return (codes - zeros[:, order]) * scales[:, order]

    def kept(self, raw: Checkpoint, quant: Quant) -> QuantizedTensor | None:
        """Codes around the middle are signed ones; others are unsigned with their zeros."""
        from irloom.ir.quantized import QuantizedTensor

        rows, at = self.dims[0], self.layout
        scales = at.scales(raw, 0, rows)
        group = self.dims[1] // scales.shape[1]
        held = scales.to(quant.scale.torch)
        order = at.order(raw)
        sorted_ = order is None or bool((order == torch.arange(self.dims[1]) // group).all())
        fits = quant.rows == 1 and (quant.group or self.dims[1]) == group
        if not fits or not sorted_ or not torch.equal(held.to(scales), scales):
            return None
        zeros, middle = at.zeros(raw, 0, rows), 1 << (self.bits - 1)
        if quant.base.name == f"i{self.bits}" and not quant.zero and bool((zeros == middle).all()):
            return QuantizedTensor((at.codes(raw, 0, rows) - middle).to(torch.int8), held, None, quant)
        if quant.base.name == f"u{self.bits}" and quant.zero:
            kept = zeros.expand(scales.shape).to(quant.zero.torch)
            return QuantizedTensor(at.codes(raw, 0, rows).to(torch.uint8), held, kept, quant)
        return None


def unpack(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """The codes in words i32, spread along ``dim``, the lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    shape = [1] * (words.ndim + 1)
    shape[dim + 1] = len(shifts)
    spread = (words.unsqueeze(dim + 1) >> shifts.reshape(shape)) & ((1 << bits) - 1)
    return spread.flatten(dim, dim + 1)


@dataclass(frozen=True)
class CompressedTensors:
    """``weight_packed`` [out, in / n], zeros packed along out, codes shifted up by half their range."""

    module: str
    bits: int
    has_zero: bool
    has_order: bool

    @property
    def parts(self) -> tuple[str, ...]:
        more = [(self.has_zero, "weight_zero_point"), (self.has_order, "weight_g_idx")]
        names = ["weight_packed", "weight_scale", "weight_shape", *(name for there, name in more if there)]
        return tuple(f"{self.module}.{name}" for name in names)

    def codes(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        width = int(raw.read(f"{self.module}.weight_shape")[1])
        return unpack(rows_of(raw, f"{self.module}.weight_packed", start, stop), self.bits, 1)[:, :width]

    def zeros(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        if not self.has_zero:
            return torch.tensor([[1 << (self.bits - 1)]], dtype=torch.int32)
        stored = raw.read(f"{self.module}.weight_zero_point")
        if stored.dtype == torch.int8:
            return stored[start:stop].int() + (1 << (self.bits - 1))
        return unpack(stored, self.bits, 0)[start:stop]

    def scales(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        return rows_of(raw, f"{self.module}.weight_scale", start, stop)

    def order(self, raw: Checkpoint) -> torch.Tensor | None:
        return raw.read(f"{self.module}.weight_g_idx").long() if self.has_order else None


@dataclass(frozen=True)
class Gptq:
    """``qweight`` [in / n, out], ``qzeros`` [groups, out / n], ``scales`` [groups, out].

    ``shift`` is what zeros are stored less: 1 but in the second version of the format.
    """

    module: str
    bits: int
    shift: int
    has_order: bool

    @property
    def parts(self) -> tuple[str, ...]:
        names = ["qweight", "qzeros", "scales", *(["g_idx"] if self.has_order else [])]
        return tuple(f"{self.module}.{name}" for name in names)

    def codes(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        return unpack(raw.read(f"{self.module}.qweight")[:, start:stop], self.bits, 0).t()

    def zeros(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        return unpack(raw.read(f"{self.module}.qzeros"), self.bits, 1)[:, start:stop].t() + self.shift

    def scales(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        return raw.read(f"{self.module}.scales")[:, start:stop].t().contiguous()

    def order(self, raw: Checkpoint) -> torch.Tensor | None:
        return raw.read(f"{self.module}.g_idx").long() if self.has_order else None


@dataclass(frozen=True)
class Awq:
    """``qweight`` [in, out / 8], ``qzeros`` [groups, out / 8], ``scales`` [groups, out]."""

    module: str

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(f"{self.module}.{name}" for name in ("qweight", "qzeros", "scales"))

    def codes(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        return self._unpacked(raw.read(f"{self.module}.qweight"), start, stop)

    def zeros(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        return self._unpacked(raw.read(f"{self.module}.qzeros"), start, stop)

    def scales(self, raw: Checkpoint, start: int, stop: int) -> torch.Tensor:
        return raw.read(f"{self.module}.scales")[:, start:stop].t().contiguous()

    def order(self, raw: Checkpoint) -> torch.Tensor | None:
        return None

    def _unpacked(self, words: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        first, last = start // 8, -(-stop // 8)
        codes = unpack(words[:, first:last], 4, 1).reshape(len(words), -1, 8)
        places = torch.tensor(_AWQ_ORDER).argsort()
        return codes[:, :, places].flatten(1)[:, start - first * 8 : stop - first * 8].t()


def integers(raw: Checkpoint, method: str, bits: int, shift: int = 1) -> dict[str, Integers]:
    """Every weight whose codes are packed into words; ``method`` is gptq, awq or compressed-tensors."""
    found: dict[str, Integers] = {}
    key = "weight_packed" if method == "compressed-tensors" else "qweight"
    names = set(raw.names())
    for name in raw.names():
        if not name.endswith(f".{key}") or raw.elem(name).name != "i32":
            continue
        module = name.removesuffix(f".{key}")
        made = _made(module, method, bits, shift, names)
        if lost := [part for part in made.parts if part not in names]:
            raise disagreeing(raw, [name], f"`{lost[0]}` is missing")
        found[f"{module}.weight"] = Integers(made, bits, _dims(raw, made, bits))
    return found


def _made(module: str, method: str, bits: int, shift: int, names: set[str]) -> CompressedTensors | Gptq | Awq:
    if method == "compressed-tensors":
        zero, order = f"{module}.weight_zero_point" in names, f"{module}.weight_g_idx" in names
        return CompressedTensors(module, bits, zero, order)
    return Awq(module) if method == "awq" else Gptq(module, bits, shift, f"{module}.g_idx" in names)


def _dims(raw: Checkpoint, made: CompressedTensors | Gptq | Awq, bits: int) -> tuple[int, int]:
    """The plain weight's, after a look at whether the parts agree."""
    packed, words = raw.dims(made.parts[0]), 32 // bits
    if isinstance(made, CompressedTensors):
        shape: list[int] = raw.read(made.parts[2]).tolist()
        scale = raw.dims(made.parts[1])
        if shape != [packed[0], shape[-1]] or -(-shape[1] // words) != packed[1]:
            raise disagreeing(raw, made.parts[:3], f"the shape says {shape}")
        dims, groups, rows = (packed[0], shape[1]), scale[-1], scale[0]
    else:
        zeros, scale = raw.dims(made.parts[1]), raw.dims(made.parts[2])
        out, inputs = (
            (packed[1], packed[0] * words) if isinstance(made, Gptq) else (packed[1] * words, packed[0])
        )
        if -(-out // words) != zeros[-1] or zeros[0] != scale[0]:
            raise disagreeing(raw, made.parts[:3], "zeros and scales do not go together")
        dims, groups, rows = (out, inputs), scale[0], scale[-1]
    if rows != dims[0] or not groups or dims[1] % groups:
        raise disagreeing(raw, made.parts[:3], "scales do not cover the weight")
    return dims
