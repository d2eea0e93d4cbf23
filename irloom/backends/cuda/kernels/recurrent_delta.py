"""The corrections of the delta rule in a chunk: the inverse of a triangular matrix, all chunks at once.

Token ``i`` of a chunk adds ``u[i] = weight[i] * (w[i] - sum of exp(c[i] - c[j]) * (k[i] . k[j]) * u[j])``
over the ``j`` before it, ``w`` being the values less what the state before the chunk says of their keys, and
``c`` the running sum of the decay's logarithms. So ``(1 + a) u = weight * w`` with ``a`` strictly lower
triangular, and the inverse of ``1 + a`` depends on no state.
"""

from __future__ import annotations

import torch

from irloom.backends.cuda.step import Step
from irloom.backends.cuda.work import Workspace

from .mode import dot, go_on, options, rounded, tl, triton, varying, wait
from .recurrent_memory import Memory, unit
from .recurrent_slots import block_of

BLOCK = 16
"""Rows that are solved one after another; blocks of them by products."""
PRECISION = "tf32x3"
"""Of products of f32 where operands are shorter: on tensor cores, in parts that add up to 21 bits or more."""


def corrections(
    m: Memory, step: Step, work: Workspace, tokens: int, least: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """By token and head, the row of the inverse [T, heads, tokens of a chunk]; keys [T, groups, K] as they
    are multiplied, of length 1 where ``m`` says so. Both in ``m.elem``.

    Rows are written for sequences of more than ``least`` tokens.
    """
    assert tokens in (2 * BLOCK, 4 * BLOCK)
    weight = m.weight
    assert weight is not None
    solved = work.take((step.tokens, m.heads, tokens), m.elem)
    plain = work.take((step.tokens, *m.k.shape[1:]), m.elem)
    strides = [n for x in (m.k, m.log, weight) for n in x.stride()[:2]]
    exact = m.elem == torch.float32
    _inverse[step.tokens // tokens + step.seqs, m.heads](
        solved, plain, m.k, m.log, weight, step.starts, step.seqs, least, m.heads, *strides, K=m.keys,
        BT=tokens, SHARED=m.heads // m.k.shape[1], KP=max(16, triton.next_power_of_2(m.keys)), NEAR=BLOCK,
        UNIT=m.unit, PRECISION="ieee" if exact else PRECISION, **options(num_warps=4),
    )  # fmt: skip
    return solved, plain


@varying("seqs")
def _inverse(
    solved, plain, k, log, weight, starts, seqs, least, heads, k_row, k_head, log_row, log_head, weight_row,
    weight_head, K: tl.constexpr, BT: tl.constexpr, SHARED: tl.constexpr, KP: tl.constexpr,
    NEAR: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """One chunk of one head.

    ``a`` is made twice, as it is and transposed: Triton 3.4 to 3.7 may store the transpose of what a Hopper
    tensor core made to the wrong place.
    """
    go_on(CHAIN)
    h, n, t = tl.program_id(1), tl.arange(0, KP), tl.arange(0, BT)
    wait(CHAIN)
    s, block = block_of(starts, seqs, tl.program_id(0), BT)
    a, b = tl.load(starts + s), tl.load(starts + s + 1)
    if (b - a <= least) | (a + block * BT >= b):
        return
    rows = (a + block * BT + t).to(tl.int64)
    live = rows < b
    keys = k + rows[:, None] * k_row + h // SHARED * k_head + n[None]
    key = tl.load(keys, mask=live[:, None] & (n < K)[None], other=0.0).to(tl.float32)
    key = rounded(unit(key, UNIT, 1), solved.dtype.element_ty)
    if h % SHARED == 0:
        at = plain + (rows[:, None] * (heads // SHARED) + h // SHARED) * K + n[None]
        tl.store(at, key, mask=live[:, None] & (n < K)[None])
    falls = tl.load(log + rows * log_row + h * log_head, mask=live, other=0.0).to(tl.float32)
    rates = tl.load(weight + rows * weight_row + h * weight_head, mask=live, other=0.0).to(tl.float32)
    since = tl.cumsum(falls, 0)
    row, column = t[:, None], t[None]
    alike = dot(key, tl.trans(key), tl.zeros([BT, BT], tl.float32))
    past = tl.where(row > column, since[:, None] - since[None], float("-inf"))
    turned = alike * tl.exp(tl.where(row < column, since[None] - since[:, None], float("-inf"))) * rates[None]
    near = row // NEAR == column // NEAR
    apart = tl.where(near, 0.0, alike * tl.exp(past) * rates[:, None])
    made = tl.where(row == column, 1.0, 0.0)
    for i in range(1, NEAR):  # row i of each block on the diagonal, from those above it
        of = tl.sum(tl.where(near & (column % NEAR == i), turned, 0.0), 1)
        made -= tl.where(near & (row % NEAR == i), tl.sum(of[:, None] * made, 0)[None], 0.0)
    far = tl.dot(made, apart, input_precision=PRECISION)
    twice = tl.dot(far, far, input_precision=PRECISION)  # up to four blocks: the fourth power is 0
    made += tl.dot(twice, made, input_precision=PRECISION)
    made -= tl.dot(far, made, input_precision=PRECISION)
    place = solved + (rows[:, None] * heads + h) * BT + column
    tl.store(place, rounded(made, solved.dtype.element_ty), mask=live[:, None])
