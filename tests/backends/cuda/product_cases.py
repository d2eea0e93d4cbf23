"""Products at random: operands of every kind, and what they make in f64."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from irloom.backends.cuda.fragments import FORM, arranged, span_of
from irloom.backends.cuda.kernels.form import Form
from irloom.backends.cuda.quantized import Operand, Quantized
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.ops.activation import ACTIVATIONS
from irloom.ir.quantized import QuantizedTensor, quantize, unpack4

from .device import DEVICE

F8, F32 = ELEMS["f8e4m3"], ELEMS["f32"]
ROW = Quant("row", F8, 0, F32)
TENSOR = Quant("tensor", F8, 0, F32, rows=0)
TOKEN_GROUP = Quant("g128", F8, 128, F32)
BLOCK = Quant("b128", F8, 128, F32, rows=128)


def rounded(x: torch.Tensor, quant: Quant) -> tuple[Quantized, torch.Tensor]:
    """``x`` as a kernel's operand, and what it stands for."""
    q = quantize(x, quant)
    zeros = None if q.zeros is None else q.zeros.to(DEVICE)
    exact = QuantizedTensor(q.values, q.scales.double().float(), q.zeros, q.quant).dequantize()
    return Quantized(q.packed().to(DEVICE), q.scales.to(DEVICE), zeros, quant), exact.double()


@dataclass
class Case:
    """A product of ``rows`` by a weight [n, k]; either is plain (None) or rounded."""

    rows: int
    n: int
    k: int
    weight: Quant | None = None
    x: Quant | None = None
    form: Form = field(default_factory=Form)
    bias: bool = False
    residual: bool = False
    norm: bool | torch.dtype = False
    """Whether it has a weight, of the element ``dtype`` or of its own."""
    dtype: torch.dtype = torch.bfloat16
    seed: int = 0

    def operands(self) -> tuple[list[Operand | None], torch.Tensor]:
        """``x, weight, bias, residual, norm``, and the result in f64 on the CPU.

        Rows of ``x`` and the residual are columns of wider ones.
        """
        g = torch.Generator().manual_seed(self.seed)

        def made(*dims: int, by: float = 1.0) -> torch.Tensor:
            return (torch.randn(*dims, generator=g) * by).to(self.dtype)

        wide = self.n * (2 if self.form.gated else 1)
        x, w = made(self.rows, self.k + 16)[:, : self.k], made(wide, self.k, by=self.k**-0.5)
        bias = made(wide) if self.bias else None
        residual = made(self.rows, self.n + 8)[:, : self.n] if self.residual else None
        norm = made(self.k) if self.norm else None
        if norm is not None and isinstance(self.norm, torch.dtype):
            norm = torch.randn(self.k, generator=g).to(self.norm)
        h, exact = x.double(), w.double()
        given: list[Operand | None] = [x.to(DEVICE), w.to(DEVICE)]
        if self.form.eps is not None:
            h = h * (h.square().mean(-1, keepdim=True) + self.form.eps).rsqrt()
            h = h if norm is None else h * norm.double()
        if self.form.quant is not None:
            _, h = rounded(h.float(), self.form.quant)
        if self.x is not None:
            given[0], h = rounded(x.float(), self.x)
        if self.weight is not None:
            given[1], exact = rounded(w.float(), self.weight)
        given += [None if t is None else t.to(DEVICE) for t in (bias, residual, norm)]
        return given, self._finished(h @ exact.T, bias, residual)

    def _finished(
        self, y: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None
    ) -> torch.Tensor:
        f = self.form
        y = y if bias is None else y + bias.double()
        act = ACTIVATIONS[f.act] if f.act else lambda y: y
        if f.gated:
            gate, up = y.chunk(2, 1)
            y = act(gate) * up
        else:
            y = act(y)
        y = y * f.scale
        y = y if f.softcap is None else f.softcap * torch.tanh(y / f.softcap)
        return y if residual is None else y + residual.double()

    def poisoned(self) -> torch.Tensor:
        """Memory for the result: NaN, and rows that are columns of wider ones."""
        wide = torch.full((self.rows, self.n + 16), float("nan"), dtype=self.dtype, device=DEVICE)
        return wide[:, : self.n]


def close(got: torch.Tensor, expected: torch.Tensor, of: torch.dtype, slack: float = 4.0) -> None:
    """Within some roundings of a sum of this size."""
    scale = expected.abs().max().clamp(min=1.0)
    error = (got.double().cpu() - expected).abs().max() / scale
    assert error <= slack * torch.finfo(of).eps, f"off by {error:.2e} of the largest"


def in_fragments(weight: Operand | None) -> Quantized:
    """A weight of four bits as kernels of its own take it."""
    assert isinstance(weight, Quantized)
    values = unpack4(weight.values, weight.quant.base)
    x = QuantizedTensor(values, weight.scales, weight.zeros, weight.quant)
    values, scales, *zeros = arranged(x, span_of(weight.quant, x.dims))
    return Quantized(values, scales, zeros[0] if zeros else None, weight.quant, FORM)
