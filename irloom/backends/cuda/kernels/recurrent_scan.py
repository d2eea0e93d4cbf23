"""Recurrences whose state has entries that do not mix: linear scan, Mamba's selective scan, RWKV.

A program owns some channels of one sequence. It takes a block of tokens at once by an associative scan, and
carries the state from block to block.
"""

from __future__ import annotations

import torch

from irloom.backends.cuda.alike import alike
from irloom.backends.cuda.step import Step
from irloom.ir.seqs import StateCache

from .mode import go_on, kernel, options, rounded, tl, triton, varying, wait
from .recurrent_slots import places, slots, span

TOKENS, CHANNELS = 128, 16
SELECTIVE_TOKENS, SELECTIVE_CHANNELS = 16, 16
"""Tokens and channels of a block; an entry of the state for each pair more."""


def carried_linear_scan(
    out: torch.Tensor, x: torch.Tensor, decay: torch.Tensor, cache: StateCache, step: Step
) -> None:
    """See ``ir.ops.recurrent``."""
    out, x, decay = (z.flatten(1) for z in (out, x, decay))
    assert out.stride(1) == x.stride(1) == decay.stride(1) == 1
    tokens, channels = (1, 128) if step.decode or alike() else (TOKENS, CHANNELS)
    _linear[triton.cdiv(x.shape[1], channels), step.seqs](
        out, x, decay, *places(cache, step), out.stride(0), x.stride(0), decay.stride(0), x.shape[1],
        **slots(cache), BT=tokens, BC=channels, **options(num_warps=4),
    )  # fmt: skip


def carried_selective_scan(
    out: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    cache: StateCache,
    step: Step,
) -> None:
    """See ``ir.ops.recurrent``."""
    assert a.is_contiguous()
    assert out.stride(1) == x.stride(1) == dt.stride(1) == b.stride(1) == c.stride(1) == 1
    channels, entries = a.shape
    tokens, some = (1, 64) if step.decode or alike() else (SELECTIVE_TOKENS, SELECTIVE_CHANNELS)
    rows = [z.stride(0) for z in (out, x, dt, b, c)]
    _selective[triton.cdiv(channels, some), step.seqs](
        out, x, dt, a, b, c, *places(cache, step), *rows, channels, entries, triton.next_power_of_2(entries),
        **slots(cache), BT=tokens, BC=some, **options(num_warps=4),
    )  # fmt: skip


def carried_wkv(
    out: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    first: torch.Tensor,
    cache: StateCache,
    step: Step,
) -> None:
    """See ``ir.ops.recurrent``."""
    assert out.stride(1) == k.stride(1) == v.stride(1) == 1
    channels = k.shape[1]
    _wkv[triton.cdiv(channels, 32), step.seqs](
        out, k, v, decay, first, *places(cache, step), out.stride(0), k.stride(0), v.stride(0), channels,
        **slots(cache), BC=32, **options(num_warps=1),
    )  # fmt: skip


@kernel
def _then(keep, add, next_keep, next_add):
    """One step of ``h -> keep * h + add`` after another."""
    return keep * next_keep, add * next_keep + next_add


@varying("width")
def _linear(
    out, x, decay, states, starts, context, table, width, out_row, x_row, decay_row,
    C: tl.constexpr, SLOT: tl.constexpr, EVERY: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
    CHAIN: tl.constexpr,
):  # fmt: skip
    """``BC`` channels of one sequence."""
    go_on(CHAIN)
    wait(CHAIN)
    a, b, before, after = span(starts, context, table, width, tl.program_id(1), EVERY)
    if a == b:
        return
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    t = tl.arange(0, BT)[:, None]
    h = tl.load(states + before * SLOT + c, mask=(c < C) & (before >= 0), other=0.0).to(tl.float32)
    for first in range(a, b, BT):
        rows = (first + t).to(tl.int64)
        live = (rows < b) & (c < C)[None]
        keep = tl.load(decay + rows * decay_row + c[None], mask=live, other=1.0).to(tl.float32)
        add = tl.load(x + rows * x_row + c[None], mask=live, other=0.0).to(tl.float32)
        if BT > 1:
            keep, add = tl.associative_scan((keep, add), 0, _then)
        states_now = keep * h[None] + add
        tl.store(out + rows * out_row + c[None], rounded(states_now, out.dtype.element_ty), mask=live)
        h = tl.sum(tl.where(t == BT - 1, states_now, 0.0), 0)  # rows behind the last keep it as it is
    tl.debug_barrier()
    tl.store(states + after * SLOT + c, rounded(h, states.dtype.element_ty), mask=c < C)


@varying("width")
def _selective(
    out, x, dt, a, b, c, states, starts, context, table, width, out_row, x_row, dt_row, b_row, c_row,
    C: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, SLOT: tl.constexpr, EVERY: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """``BC`` channels of one sequence, ``NP`` >= ``N`` entries each; blocks are [tokens, channels, NP]."""
    go_on(CHAIN)
    i = tl.program_id(0) * BC + tl.arange(0, BC)
    n = tl.arange(0, NP)
    entry = i[:, None] * N + n[None]
    inside = (i < C)[:, None] & (n < N)[None]
    wait(CHAIN)
    rate = tl.load(a + entry, mask=inside, other=0.0).to(tl.float32)
    start, end, before, after = span(starts, context, table, width, tl.program_id(1), EVERY)
    if start == end:
        return
    t = tl.arange(0, BT)
    h = tl.load(states + before * SLOT + entry, mask=inside & (before >= 0), other=0.0).to(tl.float32)
    for first in range(start, end, BT):
        rows = (first + t).to(tl.int64)[:, None]
        live = (rows < end) & (i < C)[None]
        part = (rows < end) & (n < N)[None]
        time = tl.load(dt + rows * dt_row + i[None], mask=live, other=0.0).to(tl.float32)
        u = tl.load(x + rows * x_row + i[None], mask=live, other=0.0).to(tl.float32)
        write = tl.load(b + rows * b_row + n[None], mask=part, other=0.0).to(tl.float32)
        read = tl.load(c + rows * c_row + n[None], mask=part, other=0.0).to(tl.float32)
        keep = tl.exp(time[:, :, None] * rate[None])
        add = (time * u)[:, :, None] * write[:, None, :]
        if BT > 1:
            keep, add = tl.associative_scan((keep, add), 0, _then)
        states_now = keep * h[None] + add
        y = tl.sum(states_now * read[:, None, :], 2)
        tl.store(out + rows * out_row + i[None], rounded(y, out.dtype.element_ty), mask=live)
        h = tl.sum(tl.where((t == BT - 1)[:, None, None], states_now, 0.0), 0)
    tl.debug_barrier()
    tl.store(states + after * SLOT + entry, rounded(h, states.dtype.element_ty), mask=inside)


@varying("width")
def _wkv(
    out, k, v, decay, first, states, starts, context, table, width, out_row, k_row, v_row,
    C: tl.constexpr, SLOT: tl.constexpr, EVERY: tl.constexpr, BC: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """``BC`` channels of one sequence, token by token: numerator and denominator over ``exp(most)``."""
    go_on(CHAIN)
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = c < C
    wait(CHAIN)
    fall = tl.load(decay + c, mask=inside, other=0.0).to(tl.float32)
    own = tl.load(first + c, mask=inside, other=0.0).to(tl.float32)
    a, b, before, after = span(starts, context, table, width, tl.program_id(1), EVERY)
    if a == b:
        return
    old = states + before * SLOT + c
    there = inside & (before >= 0)
    over = tl.load(old, mask=there, other=0.0).to(tl.float32)
    under = tl.load(old + C, mask=there, other=0.0).to(tl.float32)
    most = tl.load(old + 2 * C, mask=there, other=0.0).to(tl.float32)
    most = tl.where(under > 0, most, -1e38)  # nothing seen yet: below all
    for t in range(b - a):
        row = (a + t).to(tl.int64)
        key = tl.load(k + row * k_row + c, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(v + row * v_row + c, mask=inside, other=0.0).to(tl.float32)
        top = tl.maximum(most, key + own)
        kept, fresh = tl.exp(most - top), tl.exp(key + own - top)
        y = (kept * over + fresh * value) / (kept * under + fresh)
        tl.store(out + row * out_row + c, rounded(y, out.dtype.element_ty), mask=inside)
        top = tl.maximum(most + fall, key)
        kept, fresh = tl.exp(most + fall - top), tl.exp(key - top)
        over, under, most = kept * over + fresh * value, kept * under + fresh, top
    tl.debug_barrier()
    new = states + after * SLOT + c
    tl.store(new, rounded(over, states.dtype.element_ty), mask=inside)
    tl.store(new + C, rounded(under, states.dtype.element_ty), mask=inside)
    tl.store(new + 2 * C, rounded(most, states.dtype.element_ty), mask=inside)
