"""Norms over the last dim, with the sum in front where there is one, and rounded for the product behind.

One kernel for all of them: a program holds whole rows, so a row is read once and written once, and weights
are there before the kernel in front has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from irloom.backends.cuda.quantized import Operand
from irloom.backends.cuda.tuning import choose

from .mode import go_on, kept, options, rounded, tl, triton, varying, wait
from .tiles import Target, Tile, amount, fresh, heads, power_of_two, store_rows, strides


def rms_norm(
    out: Operand, x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5, groups: int = 1
) -> None:
    """The op ``rms_norm``; ``out`` may be quantized where ``groups`` is 1."""
    _norm(out, x, weight=weight, eps=eps, groups=groups)


def layer_norm(
    out: Operand,
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    groups: int = 1,
) -> None:
    """The op ``layer_norm``; ``out`` as for ``rms_norm``."""
    _norm(out, x, weight=weight, bias=bias, eps=eps, groups=groups, centered=True)


def l2_norm(out: Operand, x: Tensor, *, eps: float = 1e-6) -> None:
    """The op ``l2_norm``."""
    _norm(out, x, eps=eps, over=1)


def add_rms_norm(
    total: Tensor,
    out: Operand,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    inner: Tensor | None = None,
    *,
    eps: float = 1e-5,
    inner_eps: float | None = None,
) -> None:
    """The op ``add_rms_norm``; ``total`` may be ``x`` itself."""
    _norm(out, x, y, total, weight=weight, inner=inner, eps=eps, inner_eps=inner_eps)


def rms_norm_add(
    out: Tensor, x: Tensor, y: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5
) -> None:
    """The op ``rms_norm_add``: a sum with no norm of its own."""
    _norm(None, x, y, out, inner=weight, inner_eps=eps)


def add_layer_norm(
    total: Tensor,
    out: Operand,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> None:
    """The op ``add_layer_norm``."""
    _norm(out, x, y, total, weight=weight, bias=bias, eps=eps, centered=True)


def _norm(
    out: Operand | None,
    x: Tensor,
    y: Tensor | None = None,
    total: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    inner: Tensor | None = None,
    eps: float = 0.0,
    inner_eps: float | None = None,
    groups: int = 1,
    centered: bool = False,
    over: int = 0,
) -> None:
    """Norm ``x``, or ``total = x + y``, into ``out``.

    A sum of squares is divided by ``over``, by the number of features where that is 0.
    """
    if groups > 1:
        out, x = (_parts(t, groups) for t in (out, x))
    rows = heads(x)
    given, sums = (None if t is None else heads(t) for t in (y, total))
    target = Target.of(out) if out is not None else None
    (_, per, features), count = rows.shape, rows.shape[0] * rows.shape[1]
    attrs = {
        "D": features, "HEADS": per, "PARTS": groups > 1, "CENTERED": centered,
        "INNER": inner_eps is not None, "OVER": over or features, "B": power_of_two(features),
    }  # fmt: skip

    def run(tile: Tile, to: Target | None, summed: Tensor | None) -> None:
        out, scales = (None, None) if to is None else (to.out, to.scales)
        norm_rows[triton.cdiv(count, tile.rows),](
            out, scales, summed, rows, given, weight, bias, inner, count,
            *strides(out), *((0, 0) if scales is None else scales.stride()), *strides(summed),
            *strides(rows), *strides(given), eps, inner_eps or 0.0, **attrs, R=tile.rows,
            GROUP=to.width(attrs["B"]) if to else 0, LIMIT=to.limit if to else 0.0,
            **options(num_warps=tile.warps),
        )  # fmt: skip

    key = (str(x.dtype), *attrs.values(), y is not None, target and target.group, amount(count * features))
    some = tiles(features, count)
    run(choose("norm", key, some, lambda t: run(t, target and target.fresh(), fresh(sums))), target, sums)


def tiles(features: int, rows: int) -> Sequence[Tile]:
    """Tiles to choose from: few rows want many threads each, many rows few, so that more are under way."""
    block, few = power_of_two(features), amount(rows * features) == "few"
    if block >= 2048:
        warps = (max(1, min(32, block // n)) for n in ((512, 256, 1024) if few else (1024, 512)))
        return [Tile(1, w) for w in dict.fromkeys(warps)]
    per = max(1, 1024 // block)
    return [Tile(1, 1), Tile(per, 4)] if few else [Tile(per, 4), Tile(2 * per, 4), Tile(per, 2)]


def _parts(t: Any, groups: int) -> Tensor:
    """Each of ``groups`` parts of a row as a row of its own."""
    assert isinstance(t, Tensor), "groups of a row that share a scale are not those that are normed"
    return t.unflatten(-1, (groups, -1))


@varying("rows", "scales_g")
def norm_rows(
    out,
    scales,
    total,
    x,
    y,
    weight,
    bias,
    inner,
    rows,
    out_t,
    out_h,
    scales_t,
    scales_g,
    total_t,
    total_h,
    x_t,
    x_h,
    y_t,
    y_h,
    eps,
    inner_eps,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    PARTS: tl.constexpr,
    CENTERED: tl.constexpr,
    INNER: tl.constexpr,
    OVER: tl.constexpr,
    GROUP: tl.constexpr,
    LIMIT: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
    CHAIN: tl.constexpr,
):
    """``R`` rows of ``D`` features, in one of ``B`` columns each.

    ``PARTS``: the heads of a row are parts of what has one weight; otherwise all heads have the same.
    """
    go_on(CHAIN)
    row, col = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, B)[None, :]
    t, h = (row // HEADS).to(tl.int64)[:, None], (row % HEADS)[:, None]
    live = (row < rows)[:, None] & (col < D)
    at = h * D + col if PARTS else col
    within = live if PARTS else col < D
    if weight is not None:
        w = tl.load(weight + at, within, 0.0).to(tl.float32)
    if bias is not None:
        b = tl.load(bias + at, within, 0.0).to(tl.float32)
    if inner is not None:
        v = tl.load(inner + at, within, 0.0).to(tl.float32)
    wait(CHAIN)
    elem = x.dtype.element_ty
    s = tl.load(x + t * x_t + h * x_h + col, live, 0.0).to(tl.float32)
    if y is not None:
        more = tl.load(y + t * y_t + h * y_h + col, live, 0.0).to(tl.float32)
        if INNER:
            more *= tl.rsqrt(tl.sum(more * more, 1) / D + inner_eps)[:, None]
            more = kept(more * v if inner is not None else more, elem)
        near = rounded(s + more, elem)
        tl.store(total + t * total_t + h * total_h + col, near, live)
        s = near.to(tl.float32)
    if out is not None:
        if CENTERED:
            s = tl.where(live, s - (tl.sum(s, 1) / D)[:, None], 0.0)
        s *= tl.rsqrt(tl.sum(s * s, 1) / OVER + eps)[:, None]
        if weight is not None:
            s *= w
        if bias is not None:
            s += b
        if GROUP > 0:
            s = kept(s, elem)
        to = out + t * out_t + h * out_h + col
        scale_at = None if scales is None else scales + row.to(tl.int64) * scales_t
        store_rows(to, scale_at, scales_g, s, row < rows, 0, live, GROUP, LIMIT, D)
