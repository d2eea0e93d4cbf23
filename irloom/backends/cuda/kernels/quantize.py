"""Activations rounded for a product: e4m3 or i8, with a scale for each row, or for so many entries of it."""

from __future__ import annotations

from torch import Tensor

from irloom.backends.cuda.quantized import Quantized
from irloom.backends.cuda.tuning import choose

from .activation import Block, blocks
from .mode import go_on, options, tl, triton, varying, wait
from .tiles import Target, amount, heads, store_rows


def quantize(out: Quantized, x: Tensor) -> None:
    """``x`` [.., k] to the nearest of ``out``'s scheme, as ``ir.quantized.quantize`` does it, bit for bit."""
    target, x = Target.of(out), heads(x.view(-1, x.shape[-1]) if x.dim() > 2 else x)
    rows, _, features = x.shape

    def run(block: Block, to: Target) -> None:
        r, b, warps = block
        assert to.scales is not None
        round_rows[triton.cdiv(rows, r), triton.cdiv(features, b)](
            to.out, to.scales, x, rows, to.out.stride(0), *to.scales.stride(), x.stride(0),
            D=features, GROUP=to.width(b), LIMIT=to.limit, R=r, B=b, **options(num_warps=warps),
        )  # fmt: skip

    key = (str(x.dtype), str(target.out.dtype), features, target.group, amount(rows * features))
    some = blocks(features, rows, target.group)
    run(choose("quantize", key, some, lambda block: run(block, target.fresh())), target)


@varying("rows", "scales_g")
def round_rows(
    out,
    scales,
    x,
    rows,
    out_t,
    scales_t,
    scales_g,
    x_t,
    D: tl.constexpr,
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
    t = row.to(tl.int64)[:, None]
    live = (row < rows)[:, None] & (col < D)
    wait(CHAIN)
    y = tl.load(x + t * x_t + col, live, 0.0).to(tl.float32)
    scale_at = scales + row.to(tl.int64) * scales_t
    store_rows(out + t * out_t + col, scale_at, scales_g, y, row < rows, start, live, GROUP, LIMIT, D)
