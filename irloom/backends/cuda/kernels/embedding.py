"""Rows by index: those of the embedding, which may be quantized, and the last one of each sequence."""

from __future__ import annotations

from torch import Tensor

from irloom.backends.cuda.quantized import Operand, Quantized
from irloom.backends.cuda.step import Step
from irloom.ir.errors import IRError

from .mode import go_on, kernel, options, rounded, tl, triton, wait
from .tiled import scale_rows, scale_strides
from .tiles import power_of_two


def embedding(out: Tensor, ids: Tensor, table: Operand) -> None:
    """Row ``ids[i]`` of ``table`` for each token, in the element of ``out``.

    What is no id, as padding may have, gives the first row or the last.
    """
    values, scales, zeros, pack = table, None, None, 1
    if isinstance(table, Quantized):
        if table.form != "rows":
            raise IRError(f"embedding: operand `table` lies as {table.form}", hint="it is read row by row")
        values, scales, zeros, base = table.values, table.scales, table.zeros, table.quant.base
        pack = 2 if base.bits == 4 else 1
    assert isinstance(values, Tensor)
    count, features = ids.numel(), out.shape[-1]
    block = min(2048, power_of_two(features))
    look_up[count, triton.cdiv(features, block)](
        out.view(count, features), ids.view(-1), values, scales, zeros, values.shape[0],
        *scale_strides(table), scale_rows(table),
        D=features, GROUP=0 if scales is None else features // scales.shape[1], PACK=pack,
        SIGNED=pack == 2 and isinstance(table, Quantized) and table.quant.base.kind == "int",
        B=block, **options(num_warps=max(1, min(8, block // 256))),
    )  # fmt: skip


def last_rows(out: Tensor, x: Tensor, step: Step) -> None:
    """The op ``last_rows``; sequences that only fill the bucket get any row."""
    rows, to = (t.flatten(1) if t.dim() > 2 else t.view(len(t), -1) for t in (x, out))
    features = to.shape[1]
    block = min(2048, power_of_two(features))
    take_last[step.seqs, triton.cdiv(features, block)](
        to, rows, step.starts, to.stride(0), rows.stride(0), D=features, B=block,
        **options(num_warps=max(1, min(8, block // 256))),
    )  # fmt: skip


@kernel
def look_up(
    out,
    ids,
    table,
    scales,
    zeros,
    count,
    scale_row,
    scale_group,
    share,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    PACK: tl.constexpr,
    SIGNED: tl.constexpr,
    B: tl.constexpr,
    CHAIN: tl.constexpr,
):
    """One row, ``B`` features of it. ``PACK`` entries lie in a byte; ``GROUP`` share a scale, if any, as do
    ``share`` rows.
    """
    go_on(CHAIN)
    t, col = tl.program_id(0).to(tl.int64), tl.program_id(1) * B + tl.arange(0, B)
    live = col < D
    wait(CHAIN)
    row = tl.minimum(tl.maximum(tl.load(ids + t), 0), count - 1).to(tl.int64)
    if PACK == 2:
        part = tl.program_id(1) * (B // 2) + tl.arange(0, B // 2)
        two = tl.load(table + row * (D // 2) + part, part < D // 2).to(tl.int32)
        x = tl.interleave(two & 15, two >> 4)
        if SIGNED:
            x = (x << 28) >> 28
        x = x.to(tl.float32)
    else:
        x = tl.load(table + row * D + col, live).to(tl.float32)
    if GROUP > 0:
        at = row // share * scale_row + col // GROUP * scale_group
        if zeros is not None:
            x -= tl.load(zeros + at, live).to(tl.float32)
        x *= tl.load(scales + at, live).to(tl.float32)
    tl.store(out + t * D + col, rounded(x, out.dtype.element_ty), live)


@kernel
def take_last(out, x, starts, out_t, x_t, D: tl.constexpr, B: tl.constexpr, CHAIN: tl.constexpr):
    """One row, ``B`` features of it."""
    go_on(CHAIN)
    s, col = tl.program_id(0), tl.program_id(1) * B + tl.arange(0, B)
    wait(CHAIN)
    row = tl.maximum(tl.load(starts + s + 1) - 1, 0).to(tl.int64)
    tl.store(out + s.to(tl.int64) * out_t + col, tl.load(x + row * x_t + col, col < D), col < D)
