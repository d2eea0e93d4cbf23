"""The GPU as a device with measured rates: what a share of the roofline is a share of."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from irloom.ir.device import Device

from .clock import replayed

MOVED = 1 << 30
"""Bytes that are read: far past the L2 cache of any GPU."""
SIDE = 8192
"""Rows and columns of the products."""


@cache
def measured_card() -> Device:
    """Bytes per second that kernels move, and FLOP/s of large products of random matrices.

    Power, and so the clock, depends on the bits that change: matrices of zeros would multiply faster.
    """
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    flops = {"f32": _product(torch.float32), "bf16": _product(torch.bfloat16), "f16": _product(torch.float16)}
    if (card.major, card.minor) >= (8, 9):
        flops["f8e4m3"] = _product_fp8()
    bandwidth = max(_copied(), _read())
    torch.cuda.empty_cache()
    return Device(card.name, bandwidth, flops, card.total_memory, "measured here")


def _copied() -> float:
    """Bytes per second read and written. Not by ``copy_``: in a graph that is no kernel, and slower."""
    source = torch.randn(MOVED // 4, device="cuda")
    target = torch.empty_like(source)
    return 2 * MOVED / _seconds(lambda: torch.neg(source, out=target))


def _read() -> float:
    """Bytes per second of what is only read, as weights are."""
    source, total = torch.randn(MOVED // 4, device="cuda"), torch.zeros((), device="cuda")
    return MOVED / _seconds(lambda: torch.sum(source, dim=0, out=total))


def _product(dtype: torch.dtype) -> float:
    side = SIDE // 4 if dtype == torch.float32 else SIDE
    x = torch.randn(side, side, device="cuda").to(dtype)
    y, out = torch.randn(side, side, device="cuda").to(dtype), torch.empty_like(x)
    return 2 * side**3 / _seconds(lambda: torch.mm(x, y, out=out))


def _product_fp8() -> float:
    """One scale for each tensor, sums kept as cuBLASLt keeps them at its fastest."""
    x = torch.randn(SIDE, SIDE, device="cuda").to(torch.float8_e4m3fn)
    y, one = torch.randn(SIDE, SIDE, device="cuda").to(torch.float8_e4m3fn), torch.ones((), device="cuda")
    out = torch.empty(SIDE, SIDE, dtype=torch.bfloat16, device="cuda")

    def run() -> None:
        torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
            x, y.t(), scale_a=one, scale_b=one, out_dtype=out.dtype, use_fast_accum=True, out=out
        )

    return 2 * SIDE**3 / _seconds(run)


def _seconds(run: Callable[[], object], times: int = 3) -> float:
    return min(replayed(run) for _ in range(times)) / 1e6
