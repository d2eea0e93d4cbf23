"""How a product ends: bias, activation, gate, scale, soft cap, residual; in registers or by itself."""

from __future__ import annotations

import torch

from .curves import activated, tanh
from .mode import go_on, kernel, options, rounded, tl, triton, varying, wait


@kernel
def finished(y, up, scale, cap, GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr):
    """``softcap(scale * act(y) [* up])`` of sums in f32, which hold their bias."""
    if ACT is not None:
        y = activated(y, ACT)
    if GATED:
        y = y * up
    y = y * scale
    if CAPPED:
        y = cap * tanh(y / cap)
    return y


@varying("T")
def finish_kernel(
    out, y, bias, residual, T, N, out_row, y_row, residual_row, scale, cap,
    GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr, BN: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """One program finishes ``BN`` columns of one row."""
    t, n = tl.program_id(0).to(tl.int64), tl.program_id(1) * BN + tl.arange(0, BN)
    go_on(CHAIN)
    there = n < N
    gate_bias = tl.zeros((BN,), tl.float32)
    up_bias = gate_bias
    if bias is not None:
        gate_bias = tl.load(bias + n, there, 0).to(tl.float32)
        if GATED:
            up_bias = tl.load(bias + N + n, there, 0).to(tl.float32)
    wait(CHAIN)
    value = tl.load(y + t * y_row + n, there, 0).to(tl.float32) + gate_bias
    up = value
    if GATED:
        up = tl.load(y + t * y_row + N + n, there, 0).to(tl.float32) + up_bias
    value = finished(value, up, scale, cap, GATED, ACT, CAPPED)
    if residual is not None:
        value += tl.load(residual + t * residual_row + n, there, 0).to(tl.float32)
    tl.store(out + t * out_row + n, rounded(value, out.dtype.element_ty), there)


def finish(
    out: torch.Tensor,
    y: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    *,
    act: str | None,
    gated: bool,
    scale: float,
    softcap: float | None,
) -> None:
    """``out`` [T, N] = ``residual + softcap(scale * act(y + bias))``; of ``y`` [T, 2 N], gate first, where
    ``gated``: ``act(gate) * up``. ``out`` may be ``y`` or ``residual``, where nothing is ``gated``.
    """
    t, n = out.shape
    block = min(1024, triton.next_power_of_2(n))
    finish_kernel[(t, triton.cdiv(n, block))](
        out, y, bias, residual, t, n, out.stride(0), y.stride(0),
        0 if residual is None else residual.stride(0), float(scale), float(softcap or 1.0),
        GATED=gated, ACT=act, CAPPED=softcap is not None, BN=block, **options(num_warps=4),
    )  # fmt: skip
