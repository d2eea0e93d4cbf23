"""Products of two fp8 matrices by cuBLASLt, through ``torch._scaled_mm``.

Scales are one per tensor on both sides, one per row on both, or one per 128 entries of a token and per 128 x
128 block of the weight. The last needs SM 9.0, and has the scales of consecutive tokens side by side.
"""

from __future__ import annotations

import torch

from irloom.ir.elem import Quant

from ..quantized import Operand, Quantized
from ..work import Workspace

BLOCK = 128


def has_scaled_product(x: Quant | None, weight: Operand) -> bool:
    """Whether the library multiplies rows of ``x`` by this weight."""
    if x is None or not isinstance(weight, Quantized):
        return False
    n, k = weight.values.shape
    if x.base.name != "f8e4m3" or weight.quant.base != x.base or k % 16 or n % 16:
        return False
    if x.group in (0, k) and weight.scales.shape[1] == 1:
        return len(weight.scales) in (1, n)
    blocks = x.group == weight.quant.group == weight.quant.rows == BLOCK
    return blocks and k % (4 * BLOCK) == 0 and weight.values.is_cuda and _capability() == (9, 0)


def scaled_product(
    out: torch.Tensor, x: Quantized, weight: Quantized, bias: torch.Tensor | None, work: Workspace
) -> None:
    """``out`` [T, N] = ``x @ weight.T + bias`` for what ``has_scaled_product``; ``out`` is contiguous, in
    bf16, f16 or f32.
    """
    ours, theirs = library_scales(x, weight, work)
    whole = x.scales.shape[1] == 1  # sums of blocks are f32 by themselves: the library refuses to be asked
    torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        x.values, weight.values.t(), ours, theirs, bias, out_dtype=out.dtype, use_fast_accum=whole, out=out
    )


def library_scales(x: Quantized, weight: Quantized, work: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
    """In the strides that torch knows the kinds of scales by."""
    ours, theirs = x.scales, weight.scales.t()
    if ours.shape[1] > 1:
        if ours.stride() != (1, len(ours)):
            ours = work.take((ours.shape[1], len(ours)), torch.float32).t().copy_(ours)
        return ours, theirs
    if ours.numel() > 1 and theirs.numel() == 1:
        theirs = work.take((1, len(weight.values)), torch.float32).copy_(theirs)
    return ours.flatten().unsqueeze(1), theirs.flatten().unsqueeze(0)


def _capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability()
