"""A norm, the router that reads it, and the choice of experts: one kernel where tokens are few, or two.

Between attention and the experts nothing large is read, so what counts is how many kernels there are.
"""

from __future__ import annotations

from typing import Any

import torch

from irloom.backends.cuda.alike import alike
from irloom.backends.cuda.step import Step, real_rows
from irloom.backends.cuda.work import COUNTERS, Workspace

from .collect import collected, publish
from .form import Form
from .mode import go_on, kernel, options, rounded, tl, triton, wait
from .norm_parts import has_parts, norm_route_parts
from .router import choice, choose_experts, places, route
from .rows import rms_norm
from .tiles import power_of_two

FEW = 8
"""Tokens up to which all is one kernel: each of a token's programs reads its row and norms it."""
SOME = 32
"""The same where ``norm_parts`` does not take these."""
EACH = 4
"""Experts of a program."""
WARPS = 4


def norm_route(
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
    """``rms_norm`` of ``x`` [t, h] into ``normed``, and ``route`` by ``attrs`` of its product with ``router``
    [e, h]. For few tokens the product is of what is not rounded yet; for some hundred, of rows that are not
    normed yet by a router times ``norm``, which is rounded.
    """
    rows, experts = len(x), len(router)
    if rows > FEW and has_parts(x, router) and not alike():
        norm_route_parts(
            normed, weights, index, x, norm, router, router_bias, bias, eps=eps, work=work, step=step, **attrs
        )  # fmt: skip
        return
    if rows > SOME or rows * experts > COUNTERS or alike():
        from irloom.backends.cuda.products import product  # it imports most kernels

        rms_norm(normed, x, norm, eps=eps)
        wide = normed
        if router.dtype != x.dtype:
            wide = work.take(x.shape, router.dtype)
            rms_norm(wide, x, norm, eps=eps)
        logits = work.take((rows, experts), router.dtype)
        product(logits, wide, router, router_bias, None, None, form=Form(), work=work)
        route(weights, index, logits, bias, **attrs, step=step)
        return
    real = real_rows(step, rows)
    width = min(2048, power_of_two(x.shape[1]))
    _norm_route[(triton.cdiv(experts, EACH), rows)](
        normed, weights, index, work.counters, x, norm, router, router_bias, bias, real, x.stride(0),
        normed.stride(0), eps, attrs.get("scale", 1.0),
        H=x.shape[1], E=experts, EACH=EACH, BK=width, **choice(experts, **attrs), WARPS=WARPS,
        **options(num_warps=WARPS),
    )  # fmt: skip


@kernel
def _norm_route(
    normed, weights, index, words, x, norm, router, router_bias, bias, real, stride, out_stride,
    eps, scale, H: tl.constexpr, E: tl.constexpr, EACH: tl.constexpr, BK: tl.constexpr,
    GROUPS: tl.constexpr, PER: tl.constexpr, K: tl.constexpr, SCORE: tl.constexpr, BY_LOGITS: tl.constexpr,
    TOP: tl.constexpr, BEST: tl.constexpr, NORMALIZE: tl.constexpr, WARPS: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """A program per ``EACH`` experts and token. The last of a token's programs also writes the normed row,
    collects all logits, and chooses.
    """
    part, row = tl.program_id(0), tl.program_id(1)
    e = part * EACH + tl.arange(0, EACH)
    w = _weighted(router, norm, e, 0, H, E, BK)
    wait(CHAIN)
    go_on(CHAIN)
    x += row.to(tl.int64) * stride
    acc = tl.zeros([EACH, BK], tl.float32)
    squares = tl.zeros([BK], tl.float32)
    for first in tl.range(0, H, BK):
        entries = tl.load(x + first + tl.arange(0, BK), first + tl.arange(0, BK) < H, 0.0).to(tl.float32)
        acc += w * entries[None, :]
        squares += entries * entries
        w = _weighted(router, norm, e, first + BK, H, E, BK)
    factor = tl.rsqrt(tl.sum(squares, 0) / H + eps)
    made = tl.sum(acc, 1) * factor
    if router_bias is not None:
        made += tl.load(router_bias + e, e < E, 0.0).to(tl.float32)
    publish(words + row * E + e, made, e < E)
    if part == tl.num_programs(0) - 1:
        normed += row.to(tl.int64) * out_stride
        for first in tl.range(0, H, BK):
            h = first + tl.arange(0, BK)
            mine = tl.load(x + h, h < H, 0.0).to(tl.float32) * factor
            if norm is not None:
                mine = mine * tl.load(norm + h, h < H, 0.0).to(tl.float32)
            tl.store(normed + h, rounded(mine, normed.dtype.element_ty), h < H)
        expert, there = places(GROUPS, PER)
        logits = collected(words + row * E + tl.where(there, expert, 0), there, 32 * WARPS)
        choose_experts(
            weights, index, logits, bias, real, row, scale,
            GROUPS, PER, K, SCORE, BY_LOGITS, TOP, BEST, NORMALIZE, False,
        )  # fmt: skip


@kernel
def _weighted(router, norm, e, first, H: tl.constexpr, E: tl.constexpr, BK: tl.constexpr):
    """Entries of the router times the norm's: f32 [EACH, BK] from ``first`` on, 0 behind the end."""
    h = first + tl.arange(0, BK)
    w = tl.load(router + e[:, None] * H + h[None, :], (e < E)[:, None] & (h < H)[None, :], 0.0).to(tl.float32)
    if norm is not None:
        w = w * tl.load(norm + h, h < H, 0.0).to(tl.float32)[None, :]
    return w
