"""How tests of kernels make operands, and how near a result must be to what a body makes in f64."""

from __future__ import annotations

import torch
from torch import Tensor

from irloom.backends.cuda.quantized import Quantized
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.quantized import QuantizedTensor
from tests.backends.cuda.device import DEVICE

BOUNDS = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Relative and absolute: some units in the last place."""


def normal(seed: int, *dims: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(dims, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def columns(seed: int, rows: int, *dims: int, dtype: torch.dtype = torch.float32, more: int = 3) -> Tensor:
    """Random rows [rows, *dims] with ``more`` heads, or features, between one and the next."""
    wide = normal(seed, rows, dims[0] + more, *dims[1:], dtype=dtype)
    return wide[:, 1 : dims[0] + 1]


def poisoned(*dims: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What no kernel has written."""
    plain = dtype if dtype.is_floating_point else torch.float32
    return torch.full(dims, float("nan"), dtype=plain, device=DEVICE).to(dtype)


def assert_near(got: Tensor, want: Tensor) -> None:
    bound = BOUNDS[got.dtype]
    torch.testing.assert_close(got.double(), want.double(), rtol=bound, atol=bound)


def quantized(t: int, d: int, base: str, group: int) -> Quantized:
    """Where a quantized result goes."""
    quant = Quant("rounded", ELEMS[base], group, ELEMS["f32"])
    values = torch.full((t, d), 77.0, device=DEVICE).to(quant.base.torch)
    return Quantized(values, poisoned(t, d // (group or d)), None, quant)


def assert_rounded_alike(got: Quantized, want: QuantizedTensor) -> None:
    """The same entries but for few, which what was rounded leaves one step apart."""
    torch.testing.assert_close(got.scales, want.scales, rtol=1e-2, atol=0)
    apart = (got.values.float() - want.values.float()).abs()
    step = 1.0 if got.quant.base.kind == "int" else want.values.float().abs().clamp(min=2**-6) / 4
    assert bool((apart <= step).all())
    assert (apart > 0).float().mean() < 0.05
