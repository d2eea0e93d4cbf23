"""Recurrences whose state is a matrix that maps keys to values: SSD, gated delta, linear attention, xLSTM.

They are one recurrence with more or less to it: ``s = exp(log[t]) * s``, ``s += outer(k[t], weight[t] * u)``
with ``u`` the value, or what the value differs from ``s . k[t]``; ``y[t] = s . q[t] / divisor[t]``. Sequences
with few tokens go token by token, at the speed at which states are read and written; longer ones go in
chunks, by products of matrices (``recurrent_chunk``).
"""

from __future__ import annotations

import torch

from irloom.backends.cuda.alike import alike
from irloom.backends.cuda.step import Step
from irloom.backends.cuda.work import Workspace
from irloom.ir.seqs import StateCache

from .mode import go_on, options, rounded, tl, triton, varying, wait
from .recurrent_chunk import WIDEST, chunks
from .recurrent_gates import gates
from .recurrent_memory import Memory, by_head, soft, unit
from .recurrent_slots import places, slots, span

FEW = 8
"""Tokens of a sequence up to which it goes token by token, where chunks are the other way."""
ANY = 2**31 - 1


def carried_ssd_scan(
    out: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    cache: StateCache,
    step: Step,
    bias: torch.Tensor | None = None,
    skip: torch.Tensor | None = None,
    *,
    work: Workspace,
    soft: bool = False,
) -> None:
    """See ``ir.ops.recurrent``: keys are ``b``, queries ``c``, and a state has its values first.

    With ``soft`` it takes ``softplus(dt + bias)`` for ``dt``; to the result it adds ``skip * x``. ``bias``
    and ``skip`` are [heads].
    """
    m = Memory(out, c, b, x, log=dt, rate=a, weight=dt, bias=bias, skip=skip, soft=soft, values_first=True)
    _run(m, cache, step, work)


def carried_gated_delta(
    out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    cache: StateCache,
    step: Step,
    *,
    work: Workspace,
    unit: float | None = None,
    scale: float = 1.0,
) -> None:
    """See ``ir.ops.recurrent``. ``q`` and ``k`` may have fewer heads, each for some in a row, and as one dim.

    With ``unit`` they are brought to length 1, its ``l2_norm`` having that for ``eps``; ``q`` is then taken
    times ``scale``.
    """
    q, k = (x if x.ndim == 3 else x.unflatten(1, (-1, cache.states.shape[-2])) for x in (q, k))
    m = Memory(out, q, k, v, log=decay, weight=beta, delta=True, unit=unit, scale=scale)
    _run(m, cache, step, work)


def carried_gated_linear_attention(
    out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    cache: StateCache,
    step: Step,
    *,
    work: Workspace,
) -> None:
    """See ``ir.ops.recurrent``."""
    _run(Memory(out, q, k, v, log=decay), cache, step, work)


def carried_mlstm(
    out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    write: torch.Tensor,
    keep: torch.Tensor,
    cache: StateCache,
    step: Step,
    *,
    work: Workspace,
    eps: float = 1e-6,
) -> None:
    """See ``ir.ops.recurrent``: first what goes from token to token beside the matrix, then the matrix."""
    log, weight, divisor = gates(q, k, v, write, keep, cache, step, work, eps=eps)
    memory = Memory(out, q, k, v, log=log, weight=weight, divisor=divisor, beside=2)
    _run(memory, cache, step, work)


def _run(m: Memory, cache: StateCache, step: Step, work: Workspace) -> None:
    """Few tokens and many, each by its kernel; wide keys, and such as decay one by one, token by token."""
    long = not step.decode and not alike() and not m.by_key and m.keys <= WIDEST
    _token_by_token(m, cache, step, FEW if long else ANY)
    if long:
        chunks(m, cache, step, work, FEW)


def _token_by_token(m: Memory, cache: StateCache, step: Step, most: int) -> None:
    keys = triton.next_power_of_2(m.keys)
    values = min(max(4096 // keys, 8), triton.next_power_of_2(m.values))
    _tokens[triton.cdiv(m.values, values), m.heads, step.seqs](
        *m.operands, *places(cache, step), most, *m.strides, **m.sizes, BY_KEY=m.by_key, **slots(cache),
        KP=keys, BV=values, **options(num_warps=4),
    )  # fmt: skip


@varying("width")
def _tokens(
    out, q, k, v, log, rate, bias, skip, weight, divisor, states, starts, context, table, width, most,
    out_row, out_head, q_row, q_head, k_row, k_head, v_row, v_head, log_row, log_head, weight_row,
    weight_head, divisor_row, K: tl.constexpr, V: tl.constexpr, SHARED: tl.constexpr, HEAD: tl.constexpr,
    SK: tl.constexpr, SV: tl.constexpr, DELTA: tl.constexpr, SOFT: tl.constexpr, UNIT: tl.constexpr,
    SCALE: tl.constexpr, BY_KEY: tl.constexpr, SLOT: tl.constexpr, EVERY: tl.constexpr, KP: tl.constexpr,
    BV: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """``BV`` values of one head of a sequence of up to ``most`` tokens; ``KP`` >= ``K``."""
    go_on(CHAIN)
    h = tl.program_id(1)
    n, j = tl.arange(0, KP), tl.program_id(0) * BV + tl.arange(0, BV)
    wait(CHAIN)
    fall, more, through = by_head(rate, h, 1.0), by_head(bias, h, 0.0), by_head(skip, h, 0.0)
    a, b, before, after = span(starts, context, table, width, tl.program_id(2), EVERY)
    if (a == b) | (b - a > most):
        return
    inside = (n < K)[:, None] & (j < V)[None]
    entry = h * HEAD + n[:, None] * SK + j[None] * SV
    s = tl.load(states + before * SLOT + entry, mask=inside & (before >= 0), other=0.0).to(tl.float32)
    for t in range(b - a):
        row = (a + t).to(tl.int64)
        query = tl.load(q + row * q_row + h // SHARED * q_head + n, mask=n < K, other=0.0).to(tl.float32)
        key = tl.load(k + row * k_row + h // SHARED * k_head + n, mask=n < K, other=0.0).to(tl.float32)
        u = tl.load(v + row * v_row + h * v_head + j, mask=j < V, other=0.0).to(tl.float32)
        query, key = unit(query, UNIT, 0) * SCALE, unit(key, UNIT, 0)
        y = tl.zeros([BV], tl.float32)
        if skip is not None:
            y += through * u
        if BY_KEY:
            keep = tl.load(log + row * log_row + h * log_head + n, mask=n < K, other=0.0).to(tl.float32)
            s *= tl.exp(keep)[:, None]
        else:
            s *= tl.exp(soft(tl.load(log + row * log_row + h * log_head), more, SOFT) * fall)
        if DELTA:
            u -= tl.sum(s * key[:, None], 0)
        if weight is not None:
            u *= soft(tl.load(weight + row * weight_row + h * weight_head), more, SOFT)
        s += key[:, None] * u[None]
        y += tl.sum(s * query[:, None], 0)
        if divisor is not None:
            y /= tl.load(divisor + row * divisor_row + h)
        tl.store(out + row * out_row + h * out_head + j, rounded(y, out.dtype.element_ty), mask=j < V)
    tl.debug_barrier()
    tl.store(states + after * SLOT + entry, rounded(s, states.dtype.element_ty), mask=inside)
