"""What xLSTM carries from token to token beside its matrix: the running maximum of the gates, and a norm."""

from __future__ import annotations

import torch

from irloom.backends.cuda.step import Step
from irloom.backends.cuda.work import Workspace
from irloom.ir.seqs import StateCache

from .mode import go_on, options, rounded, tl, triton, varying, wait
from .recurrent_slots import places, slots, span


def gates(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    write: torch.Tensor,
    keep: torch.Tensor,
    cache: StateCache,
    step: Step,
    work: Workspace,
    *,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By token and head f32[T, heads]: the logarithm of the decay, the weight of the value, the divisor.

    They are what makes ``carried_mlstm`` a ``Memory``. The last two columns of the states are renewed.
    """
    heads, keys = k.shape[1:]
    log, weight, divisor = (work.take((step.tokens, heads), torch.float32) for _ in range(3))
    rows = [n for x in (q, k, write, keep) for n in x.stride()[:2]]
    _gates[heads, step.seqs](
        log, weight, divisor, q, k, write, keep, *places(cache, step), heads, *rows, eps, keys, v.shape[2],
        **slots(cache), KP=triton.next_power_of_2(keys), **options(num_warps=1),
    )  # fmt: skip
    return log, weight, divisor


@varying("width")
def _gates(
    log, weight, divisor, q, k, write, keep, states, starts, context, table, width, row_size,
    q_row, q_head, k_row, k_head, write_row, write_head, keep_row, keep_head, eps, K: tl.constexpr,
    V: tl.constexpr, SLOT: tl.constexpr, EVERY: tl.constexpr, KP: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """One head of one sequence. Column ``V`` of its state is the norm, column ``V + 1`` the maximum."""
    go_on(CHAIN)
    wait(CHAIN)
    a, b, before, after = span(starts, context, table, width, tl.program_id(1), EVERY)
    if a == b:
        return
    h, n = tl.program_id(0), tl.arange(0, KP)
    entry = (h * K + n) * (V + 2) + V
    there = (n < K) & (before >= 0)
    norm = tl.load(states + before * SLOT + entry, mask=there, other=0.0).to(tl.float32)
    most = tl.load(states + before * SLOT + h * K * (V + 2) + V + 1, mask=before >= 0, other=0.0).to(
        tl.float32
    )
    for t in range(b - a):
        row = (a + t).to(tl.int64)
        query = tl.load(q + row * q_row + h * q_head + n, mask=n < K, other=0.0).to(tl.float32)
        key = tl.load(k + row * k_row + h * k_head + n, mask=n < K, other=0.0).to(tl.float32)
        new = tl.load(write + row * write_row + h * write_head).to(tl.float32)
        old = tl.load(keep + row * keep_row + h * keep_head).to(tl.float32) + most
        most = tl.maximum(old, new)
        fresh = tl.exp(new - most)
        norm = tl.exp(old - most) * norm + fresh * key
        at = row * row_size + h
        tl.store(log + at, old - most)
        tl.store(weight + at, fresh)
        tl.store(divisor + at, tl.maximum(tl.abs(tl.sum(norm * query)), tl.exp(-most)) + eps)
    tl.debug_barrier()
    tl.store(states + after * SLOT + entry, rounded(norm, states.dtype.element_ty), mask=n < K)
    largest = rounded(norm * 0 + most, states.dtype.element_ty)
    tl.store(states + after * SLOT + entry + 1, largest, mask=n < K)
