"""Causal convolution, and the token before: blocks of tokens at once, the first one renews the state."""

from __future__ import annotations

import torch

from irloom.backends.cuda.step import Step
from irloom.ir.seqs import StateCache

from .mode import go_on, kernel, options, rounded, tl, triton, varying, wait
from .recurrent_slots import block_of, places, slots, span

TOKENS, CHANNELS, MANY_CHANNELS = 16, 256, 256


def carried_causal_conv(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    cache: StateCache,
    step: Step,
    bias: torch.Tensor | None = None,
    *,
    act: str | None = None,
) -> None:
    """See ``ir.ops.recurrent``; ``act`` ``silu`` is applied to the results."""
    assert act in (None, "silu")
    assert weight.is_contiguous()
    _launch(out, x, weight, bias, cache, step, weight.shape[1], act == "silu")


def carried_token_shift(out: torch.Tensor, x: torch.Tensor, cache: StateCache, step: Step) -> None:
    """See ``ir.ops.recurrent``: a convolution that takes the older of two tokens as it is."""
    _launch(out.flatten(1), x.flatten(1), None, None, cache, step, 2, False)


def _launch(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    cache: StateCache,
    step: Step,
    taps: int,
    silu: bool,
) -> None:
    assert x.stride(1) == out.stride(1) == 1
    rows, columns = (1, MANY_CHANNELS) if step.decode else (TOKENS, CHANNELS)
    blocks = step.seqs if step.decode else step.tokens // rows + step.seqs
    _conv[blocks, triton.cdiv(x.shape[1], columns)](
        out, x, weight, bias, *places(cache, step), step.seqs, out.stride(0), x.stride(0), x.shape[1],
        TAPS=taps, **slots(cache), SILU=silu, BT=rows, BC=columns, **options(num_warps=4),
    )  # fmt: skip


@varying("width", "seqs")
def _conv(
    out, x, weight, bias, states, starts, context, table, width, seqs, out_row, x_row,
    C: tl.constexpr, TAPS: tl.constexpr, SLOT: tl.constexpr, EVERY: tl.constexpr, SILU: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """Up to ``BT`` tokens of one sequence in ``BC`` channels. Without a weight, ``TAPS`` - 1 tokens ago."""
    go_on(CHAIN)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    wait(CHAIN)
    if BT == 1:
        s, block = tl.program_id(0), 0
    else:
        s, block = block_of(starts, seqs, tl.program_id(0), BT)
    a, b, before, after = span(starts, context, table, width, s, EVERY)
    first = a + block * BT
    if first >= b:
        return
    rows = first + tl.arange(0, BT)[:, None]
    live = (rows < b) & (c < C)[None]
    old = states + before * SLOT + c * (TAPS - 1)
    total = tl.zeros([BT, BC], tl.float32)
    for i in tl.static_range(TAPS):
        at = rows - (TAPS - 1) + i
        seen = tl.load(x + at.to(tl.int64) * x_row + c[None], mask=live & (at >= a), other=0.0).to(tl.float32)
        if i < TAPS - 1:
            kept = live & (at < a) & (before >= 0)
            seen += tl.load(old[None] + (at - a + TAPS - 1), mask=kept, other=0.0).to(tl.float32)
        if weight is not None:
            total += seen * tl.load(weight + c * TAPS + i, mask=c < C, other=0.0).to(tl.float32)[None]
        elif i == 0:
            total = seen
    if bias is not None:
        total += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None]
    if SILU:
        total *= tl.sigmoid(total)
    tl.store(out + rows.to(tl.int64) * out_row + c[None], rounded(total, out.dtype.element_ty), mask=live)
    if block == 0:
        tl.debug_barrier()  # all of the old state has been read
        new = states + after * SLOT + c * (TAPS - 1)
        _renew(new, old, x + c, x_row, a, b, c < C, before >= 0, TAPS - 1)


@kernel
def _renew(new, old, x, x_row, a, b, inside, there, KEPT: tl.constexpr):
    """The last tokens up to row ``b``. Entry i takes entry i + tokens, which is not yet overwritten."""
    for i in tl.static_range(KEPT):  # pyright: ignore[reportGeneralTypeIssues]
        at = b - KEPT + i
        seen = tl.load(x + at.to(tl.int64) * x_row, mask=inside & (at >= a), other=0.0).to(tl.float32)
        kept = inside & there & (at < a)
        seen += tl.load(old + (at - a + KEPT), mask=kept, other=0.0).to(tl.float32)
        tl.store(new + i, rounded(seen, new.dtype.element_ty), mask=inside)
