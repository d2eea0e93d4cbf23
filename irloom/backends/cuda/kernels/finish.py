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


@kernel
def brought_by_rows(w_scales, bias, n, N, w_scale_row, GATED: tl.constexpr):
    """Scales and biases of rows ``n`` of the weight, and of those that are gated: ones, zeros where none."""
    scales, up_scales, biases, up_biases = 1.0, 1.0, 0.0, 0.0
    if w_scales is not None:
        scales = tl.load(w_scales + n * w_scale_row, n < N, 0.0).to(tl.float32)[:, None]
        if GATED:
            up_scales = tl.load(w_scales + (n + N) * w_scale_row, n < N, 0.0).to(tl.float32)[:, None]
    if bias is not None:
        biases = tl.load(bias + n, n < N, 0.0).to(tl.float32)[:, None]
        if GATED:
            up_biases = tl.load(bias + N + n, n < N, 0.0).to(tl.float32)[:, None]
    return scales, biases, up_scales, up_biases


@kernel
def brought_by_tokens(x_scales, residual, n, t, N, T, x_scale_row, residual_row):
    """Scales of tokens, and what is added to a result: one, zero where there is none."""
    scales, more = 1.0, 0.0
    if x_scales is not None:
        scales = tl.load(x_scales + t * x_scale_row, t < T, 0.0)[None, :]
    if residual is not None:
        at = residual + t[None, :].to(tl.int64) * residual_row + n[:, None]
        more = tl.load(at, (n < N)[:, None] & (t < T)[None, :], 0.0).to(tl.float32)
    return scales, more


@kernel
def ended(
    acc, up, of_rows, of_tokens, scale, cap, GATED: tl.constexpr, ACT: tl.constexpr, CAPPED: tl.constexpr
):
    """``finished`` sums of rows of a weight, with what its rows and what tokens have brought."""
    scales, biases, up_scales, up_biases = of_rows
    token_scales, more = of_tokens
    acc = acc * scales * token_scales + biases
    if GATED:
        up = up * up_scales * token_scales + up_biases
    return finished(acc, up, scale, cap, GATED, ACT, CAPPED) + more


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
