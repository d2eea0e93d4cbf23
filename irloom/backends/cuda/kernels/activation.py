"""Gates: an activation of one half of what a product made, times the other; rounded for the next product."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from irloom.backends.cuda.quantized import Operand
from irloom.backends.cuda.tuning import choose

from .curves import activated, sigmoid
from .mode import go_on, kept, options, tl, triton, varying, wait
from .tiles import Target, amount, heads, power_of_two, store_rows, strides

Block = tuple[int, int, int]
"""Rows and features of a program, and its warps."""


def act_mul(out: Operand, gate: Tensor, up: Tensor, *, act: str) -> None:
    """``act(gate) * up`` for every activation of ``ir.ops.activation``; ``out`` may be quantized."""
    _gated(out, gate, up, act, 0.0, 0.0, 0.0)


def clamped_silu_mul(
    out: Operand, gate: Tensor, up: Tensor, *, limit: float, alpha: float = 1.0, shift: float = 0.0
) -> None:
    """The op ``clamped_silu_mul``; ``out`` may be quantized."""
    _gated(out, gate, up, "clamped", limit, alpha, shift)


def _gated(
    out: Operand, gate: Tensor, up: Tensor, act: str, limit: float, alpha: float, shift: float
) -> None:
    target, gate, up = Target.of(out), heads(gate), heads(up)
    rows, per, features = gate.shape

    def run(block: Block, to: Target) -> None:
        r, b, warps = block
        gated_rows[triton.cdiv(rows * per, r), triton.cdiv(features, b)](
            to.out, to.scales, gate, up, rows * per, *strides(to.out),
            *((0, 0) if to.scales is None else to.scales.stride()), *strides(gate), *strides(up),
            limit, alpha, shift, D=features, HEADS=per, ACT=act, GROUP=to.width(b), LIMIT=to.limit,
            R=r, B=b, **options(num_warps=warps),
        )  # fmt: skip

    key = (act, str(gate.dtype), features, target.group, amount(rows * per * features))
    some = blocks(features, rows * per, target.group)
    run(choose("gate", key, some, lambda block: run(block, target.fresh())), target)


def blocks(features: int, rows: int, group: int) -> Sequence[Block]:
    """Blocks to choose from: for few rows many programs; whole rows where a row shares one scale."""
    whole, few = power_of_two(features), amount(rows * features) == "few"
    if group == features:
        rows_of = max(1, 1024 // whole)
        warps = dict.fromkeys(max(1, min(32, whole * rows_of // n)) for n in (512, 1024, 256))
        return [(rows_of, whole, w) for w in warps]
    least = max(group, 64)
    widths = (512, 1024, 256) if few else (2048, 1024, 4096)
    sizes = dict.fromkeys(max(least, min(whole, w)) for w in widths)
    return [(max(1, 1 if few else 1024 // w), w, max(1, min(8, w // 256))) for w in sizes]


@varying("rows")
def gated_rows(
    out,
    scales,
    gate,
    up,
    rows,
    out_t,
    out_h,
    scales_t,
    scales_g,
    gate_t,
    gate_h,
    up_t,
    up_h,
    limit,
    alpha,
    shift,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    ACT: tl.constexpr,
    GROUP: tl.constexpr,
    LIMIT: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
    CHAIN: tl.constexpr,
):
    """``R`` rows by ``B`` features."""
    go_on(CHAIN)
    row, start = tl.program_id(0) * R + tl.arange(0, R), tl.program_id(1) * B
    col = start + tl.arange(0, B)[None, :]
    t, h = (row // HEADS).to(tl.int64)[:, None], (row % HEADS)[:, None]
    live = (row < rows)[:, None] & (col < D)
    wait(CHAIN)
    g = tl.load(gate + t * gate_t + h * gate_h + col, live, 0.0).to(tl.float32)
    u = tl.load(up + t * up_t + h * up_h + col, live, 0.0).to(tl.float32)
    if ACT == "clamped":
        g, u = tl.minimum(g, limit), tl.minimum(tl.maximum(u, -limit), limit)
        y = g * sigmoid(alpha * g) * (u + shift)
    else:
        y = activated(g, ACT) * u
    if GROUP > 0:
        y = tl.where(live, kept(y, gate.dtype.element_ty), 0.0)
    to = out + t * out_t + h * out_h + col
    scale_at = None if scales is None else scales + row.to(tl.int64) * scales_t
    store_rows(to, scale_at, scales_g, y, row < rows, start, live, GROUP, LIMIT, D)
