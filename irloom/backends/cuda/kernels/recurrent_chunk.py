"""Recurrences over matrices in chunks of tokens: what is between the tokens of a chunk is a product.

With ``c`` the running sum of the decay's logarithms in a chunk, token ``i`` sees token ``j`` of it through
``exp(c[i] - c[j]) * (q[i] . k[j])``, and all before the chunk through the state (Dao and Gu, 2024). The delta
rule has each value corrected by what the tokens before it have left; the corrections of a chunk are a
triangular system, which is solved for all chunks at once (``recurrent_delta``; Yang et al., 2024).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from irloom.backends.cuda.step import Step
from irloom.backends.cuda.work import Workspace
from irloom.ir.seqs import StateCache

from .mode import dot, go_on, options, rounded, tl, triton, varying, wait
from .recurrent_delta import corrections
from .recurrent_memory import Memory, by_head, soft, unit
from .recurrent_slots import places, slots, span

CHUNK, EXACT_CHUNK = 64, 32
"""Tokens of a chunk: as wide as tensor cores like it; for f32 as shared memory does."""
ELEMS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
WIDEST = 256
"""Features of keys that fit into shared memory."""
ROOM = 160 * 1024
"""Bytes of shared memory that two chunks take at most: the next one is loaded while this one is worked on."""
VALUES = 32
"""Features of values in a program: more spill registers."""


def chunks(m: Memory, cache: StateCache, step: Step, work: Workspace, least: int) -> None:
    """Sequences of more than ``least`` tokens."""
    exact = m.elem == torch.float32
    tokens = EXACT_CHUNK if exact else CHUNK
    keys = max(16, triton.next_power_of_2(m.keys))
    some = min(VALUES, max(16, triton.next_power_of_2(m.values)))
    solved = None
    if m.delta:
        solved, keys_as_they_are = corrections(m, step, work, tokens, least)
        m = replace(m, k=keys_as_they_are)
    _chunks[triton.cdiv(m.values, some), m.heads, step.seqs](
        *m.operands, solved, *places(cache, step), least, m.heads, *m.strides, **m.sizes, **slots(cache),
        ELEM=ELEMS[m.elem], BT=tokens, KP=keys, BV=some, **options(num_warps=4, num_stages=_stages()),
    )  # fmt: skip


@cache
def _stages() -> int:
    """Chunks under way at once."""
    if not torch.cuda.is_available():
        return 1
    from triton.compiler.compiler import max_shared_mem

    return 2 if max_shared_mem(torch.cuda.current_device()) >= ROOM else 1


@varying("width")
def _chunks(
    out, q, k, v, log, rate, bias, skip, weight, divisor, solved, states, starts, context, table, width,
    least, heads, out_row, out_head, q_row, q_head, k_row, k_head, v_row, v_head, log_row, log_head,
    weight_row, weight_head, divisor_row, K: tl.constexpr, V: tl.constexpr, SHARED: tl.constexpr,
    HEAD: tl.constexpr, SK: tl.constexpr, SV: tl.constexpr, DELTA: tl.constexpr, SOFT: tl.constexpr,
    UNIT: tl.constexpr, SCALE: tl.constexpr, SLOT: tl.constexpr, EVERY: tl.constexpr, ELEM: tl.constexpr,
    BT: tl.constexpr, KP: tl.constexpr, BV: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """``BV`` values of one head of a sequence, ``BT`` tokens at once; ``KP`` >= ``K``.

    Keys are loaded as they are multiplied: what is computed and then transposed as the left of a product is
    stored to the wrong place on Hopper (Triton 3.4 to 3.7).
    """
    go_on(CHAIN)
    h = tl.program_id(1)
    n, j, t = tl.arange(0, KP), tl.program_id(0) * BV + tl.arange(0, BV), tl.arange(0, BT)
    wait(CHAIN)
    fall, more, through = by_head(rate, h, 1.0), by_head(bias, h, 0.0), by_head(skip, h, 0.0)
    a, b, before, after = span(starts, context, table, width, tl.program_id(2), EVERY)
    if b - a <= least:
        return
    inside = (n < K)[:, None] & (j < V)[None]
    entry = h * HEAD + n[:, None] * SK + j[None] * SV
    s = tl.load(states + before * SLOT + entry, mask=inside & (before >= 0), other=0.0).to(tl.float32)
    for first in range(a, b, BT):
        rows = (first + t).to(tl.int64)
        live = rows < b
        wide, tall = live[:, None] & (n < K)[None], live[:, None] & (j < V)[None]
        group = h // SHARED
        key = tl.load(k + rows[:, None] * k_row + group * k_head + n[None], mask=wide, other=0.0)
        if not DELTA:
            key = rounded(key.to(tl.float32), ELEM)
        u = tl.load(v + rows[:, None] * v_row + h * v_head + j[None], mask=tall, other=0.0).to(tl.float32)
        nothing = tl.zeros([BT, BV], tl.float32)
        y = nothing
        if skip is not None:
            y += through * u
        falls = soft(tl.load(log + rows * log_row + h * log_head, mask=live, other=0.0), more, SOFT) * fall
        falls = tl.where(live, falls, 0.0)
        since, total = tl.cumsum(falls, 0), tl.sum(falls, 0)
        if DELTA:
            u -= tl.exp(since)[:, None] * dot(key, rounded(s, ELEM), nothing)
        if weight is not None:
            rates = tl.load(weight + rows * weight_row + h * weight_head, mask=live, other=0.0)
            u *= soft(rates, more, SOFT)[:, None]
        if DELTA:
            system = solved + (rows[:, None] * heads + h) * BT + t[None]
            u = dot(tl.load(system, mask=live[:, None], other=0.0), rounded(u, ELEM), nothing)
        query = tl.load(q + rows[:, None] * q_row + group * q_head + n[None], mask=wide, other=0.0)
        query = rounded(unit(query.to(tl.float32), UNIT, 1) * SCALE, ELEM)
        seen = tl.where(t[:, None] >= t[None], since[:, None] - since[None], float("-inf"))
        scores = dot(query, tl.trans(key), tl.zeros([BT, BT], tl.float32)) * tl.exp(seen)
        y += dot(query, rounded(s, ELEM), nothing) * tl.exp(since)[:, None]
        y = dot(rounded(scores, ELEM), rounded(u, ELEM), y)
        if divisor is not None:
            y /= tl.load(divisor + rows * divisor_row + h, mask=live, other=1.0)[:, None]
        tl.store(
            out + rows[:, None] * out_row + h * out_head + j[None],
            rounded(y, out.dtype.element_ty),
            mask=tall,
        )
        left = rounded(u * tl.exp(total - since)[:, None], ELEM)
        s = dot(tl.trans(key), left, s * tl.exp(total))
    tl.debug_barrier()
    tl.store(states + after * SLOT + entry, rounded(s, states.dtype.element_ty), mask=inside)
