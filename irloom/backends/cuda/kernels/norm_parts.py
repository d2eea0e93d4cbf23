"""A norm, its router and the choice of experts for up to some hundred tokens, in two kernels.

The first multiplies a few columns of all rows: that takes a moment, since what it reads is spread over the
whole GPU. The second has a program per token, which sums what the first one's have left.
"""

from __future__ import annotations

from typing import Any

import torch

from irloom.backends.cuda.step import Step, real_rows
from irloom.backends.cuda.work import Workspace

from .mode import dot, go_on, options, rounded, tl, triton, varying, wait
from .router import choice, choose_experts, places
from .tiles import power_of_two

MOST = 256
"""Tokens up to which parts of their logits are little to write and read."""
COLUMNS = 64
"""Entries of a row that a program of the first kernel multiplies, at least."""
PARTS = 32
"""Programs that share a row, at most."""
EACH = 64
"""Experts of a program of the first kernel."""
WIDEST = 8192
"""Entries of a row that a program of the second kernel holds."""


def has_parts(x: torch.Tensor, router: torch.Tensor) -> bool:
    """Whether ``norm_route_parts`` takes these: the tensor cores multiply them, and they are not too many."""
    rows, h = x.shape
    return rows <= MOST and h <= WIDEST and x.dtype == router.dtype != torch.float32


def norm_route_parts(
    normed: torch.Tensor,
    weights: torch.Tensor,
    index: torch.Tensor,
    x: torch.Tensor,
    norm: torch.Tensor | None,
    router: torch.Tensor,
    router_bias: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    eps: float,
    work: Workspace,
    step: Step | None = None,
    **attrs: Any,
) -> None:
    """``norm_route`` where rows and router are of one element of 16 bits."""
    (rows, h), experts = x.shape, len(router)
    height = min(64, max(16, power_of_two(rows)))
    columns = max(COLUMNS, power_of_two(-(-h // PARTS)))
    split = -(-h // columns)
    parts = work.take((split, rows, experts), torch.float32)
    squares = work.take((split, rows), torch.float32)
    _logit_parts[(split, triton.cdiv(experts, EACH), triton.cdiv(rows, height))](
        parts, squares, x, norm, router, rows, x.stride(0), H=h, E=experts, BT=height, BE=EACH, BK=columns,
        **options(num_warps=4),
    )  # fmt: skip
    real = real_rows(step, rows)
    _sum_and_choose[(rows,)](
        normed, weights, index, parts, squares, x, norm, router_bias, bias, real, rows, x.stride(0),
        normed.stride(0), eps, attrs.get("scale", 1.0),
        H=h, E=experts, SPLIT=split, WIDTH=power_of_two(h), **choice(experts, **attrs),
        **options(num_warps=4),
    )  # fmt: skip


@varying("rows")
def _logit_parts(
    parts, squares, x, norm, router, rows, stride,
    H: tl.constexpr, E: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr,
    CHAIN: tl.constexpr,
):  # fmt: skip
    """A program per ``BK`` columns, ``BE`` experts and ``BT`` tokens: their part of the logits of rows that
    are not divided by their size yet, and of that.
    """
    part, first = tl.program_id(0), tl.program_id(2) * BT
    h, e = part * BK + tl.arange(0, BK), tl.program_id(1) * BE + tl.arange(0, BE)
    w = tl.load(router + e[:, None] * H + h[None, :], (e < E)[:, None] & (h < H)[None, :], 0.0)
    if norm is not None:
        w = rounded(w.to(tl.float32) * tl.load(norm + h, h < H, 0.0).to(tl.float32)[None, :], w.dtype)
    wait(CHAIN)
    go_on(CHAIN)
    t = first + tl.arange(0, BT)
    at = x + t.to(tl.int64)[:, None] * stride + h[None, :]
    a = tl.load(at, (t < rows)[:, None] & (h < H)[None, :], 0.0)
    acc = dot(a, tl.trans(w), tl.zeros([BT, BE], tl.float32))
    to = parts + (part * rows + t[:, None]) * E + e[None, :]
    tl.store(to, acc, (t < rows)[:, None] & (e < E)[None, :])
    if tl.program_id(1) == 0:
        wide = a.to(tl.float32)
        tl.store(squares + part * rows + t, tl.sum(wide * wide, 1), t < rows)


@varying("rows")
def _sum_and_choose(
    normed, weights, index, parts, squares, x, norm, router_bias, bias, real, rows, stride, out_stride, eps,
    scale, H: tl.constexpr, E: tl.constexpr, SPLIT: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr,
    PER: tl.constexpr, K: tl.constexpr, SCORE: tl.constexpr, BY_LOGITS: tl.constexpr, TOP: tl.constexpr,
    BEST: tl.constexpr, NORMALIZE: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """A program per token sums its logits, writes its normed row, and chooses."""
    row, h, part = tl.program_id(0), tl.arange(0, WIDTH), tl.arange(0, triton.next_power_of_2(SPLIT))
    expert, there = places(GROUPS, PER)
    by = tl.full([WIDTH], 1.0, tl.float32)
    if norm is not None:
        by = tl.load(norm + h, h < H, 0.0).to(tl.float32)
    wait(CHAIN)
    go_on(CHAIN)
    mine = tl.load(x + row.to(tl.int64) * stride + h, h < H, 0.0).to(tl.float32)
    size = tl.load(squares + part * rows + row, part < SPLIT, 0.0)
    logits = tl.zeros_like(expert).to(tl.float32)
    for s in tl.static_range(SPLIT):
        logits += tl.load(parts + (s * rows + row) * E + expert, there, 0.0)
    factor = tl.rsqrt(tl.sum(size, 0) / H + eps)
    to = normed + row.to(tl.int64) * out_stride + h
    tl.store(to, rounded(mine * factor * by, normed.dtype.element_ty), h < H)
    logits *= factor
    if router_bias is not None:
        logits += tl.load(router_bias + expert, there, 0.0).to(tl.float32)
    choose_experts(
        weights, index, logits, bias, real, row, scale,
        GROUPS, PER, K, SCORE, BY_LOGITS, TOP, BEST, NORMALIZE, False,
    )  # fmt: skip
