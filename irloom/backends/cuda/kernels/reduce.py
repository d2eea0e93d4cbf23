"""What is left of a row: its largest entries, or the shares of all."""

from __future__ import annotations

import torch

from .choose import LAST, largest, order_keys, place_of
from .mode import go_on, kernel, options, rounded, tl, triton, wait
from .tiles import power_of_two

WIDEST = 8192
"""Entries of a row that ``topk`` holds at once, at most."""
STEP = 4096
"""Entries of a row that are read at a time."""


def topk(values: torch.Tensor, index: torch.Tensor, x: torch.Tensor, *, k: int) -> None:
    """The op ``topk``: ``values`` and ``index`` i32 [.., k] of ``x`` [.., n], n at most ``WIDEST``.

    Of equal entries the first comes first.
    """
    n, rows = x.shape[-1], _rows(x)
    width = triton.next_power_of_2(n)
    grid = (len(rows),)
    _topk[grid](
        values, index, rows, rows.stride(0), K=k, LENGTH=n, WIDTH=width,
        **options(num_warps=max(1, min(8, width // 256))),
    )  # fmt: skip


def argmax(out: torch.Tensor, x: torch.Tensor) -> None:
    """The op ``argmax``: ``out`` i32 [..], the first of equals of ``x`` [.., n]."""
    rows = _rows(x)
    step = min(STEP, power_of_two(x.shape[-1]))
    _argmax[(len(rows),)](
        out, rows, rows.stride(0), x.shape[-1], STEP=step, **options(num_warps=_warps(step))
    )


def softmax(out: torch.Tensor, x: torch.Tensor, *, dim: int = -1) -> None:
    """The op ``softmax`` along the last dim of ``x`` [.., n]."""
    assert dim in (-1, x.ndim - 1), "rows of the last dim"
    rows = _rows(x)
    step = min(STEP, power_of_two(x.shape[-1]))
    _softmax[(len(rows),)](
        out, rows, rows.stride(0), x.shape[-1], STEP=step, **options(num_warps=_warps(step))
    )


def _rows(x: torch.Tensor) -> torch.Tensor:
    """``x`` [.., n] as a matrix, without a copy."""
    return x if x.ndim == 2 else x.view(-1, x.shape[-1])


def _warps(step: int) -> int:
    return max(1, min(8, step // 512))


@kernel
def _topk(
    values, index, x, stride,
    K: tl.constexpr, LENGTH: tl.constexpr, WIDTH: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """A program per row."""
    ROOM: tl.constexpr = triton.next_power_of_2(K)
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH)
    wait(CHAIN)
    go_on(CHAIN)
    entries = tl.load(x + row * stride + at, at < LENGTH, 0.0).to(tl.float32)
    chosen = largest(tl.where(at < LENGTH, order_keys(entries, at), LAST), K, ROOM)
    rank = tl.arange(0, ROOM)
    tl.store(index + row * K + rank, chosen, rank < K)
    tl.store(values + row * K + rank, tl.load(x + row * stride + chosen, rank < K, 0.0), rank < K)


@kernel
def _argmax(out, x, stride, n, STEP: tl.constexpr, CHAIN: tl.constexpr):
    """A program per row."""
    row = tl.program_id(0).to(tl.int64)
    wait(CHAIN)
    go_on(CHAIN)
    best = tl.zeros([STEP], tl.int64) + LAST
    for start in tl.range(0, n, STEP):
        at = start + tl.arange(0, STEP)
        entries = tl.load(x + row * stride + at, at < n, 0.0).to(tl.float32)
        best = tl.maximum(best, tl.where(at < n, order_keys(entries, at), LAST))
    tl.store(out + row, place_of(tl.max(best, 0)))


@kernel
def _softmax(out, x, stride, n, STEP: tl.constexpr, CHAIN: tl.constexpr):
    """A program per row: the largest entry and the sum below it in one pass, shares in another."""
    row = tl.program_id(0).to(tl.int64)
    wait(CHAIN)
    go_on(CHAIN)
    top = tl.zeros([STEP], tl.float32) - float("inf")
    total = tl.zeros([STEP], tl.float32)
    for start in tl.range(0, n, STEP):
        at = start + tl.arange(0, STEP)
        entries = tl.load(x + row * stride + at, at < n, float("-inf")).to(tl.float32)
        above = tl.maximum(top, entries)
        safe = tl.where(above == float("-inf"), 0.0, above)
        total = total * tl.exp(top - safe) + tl.exp(entries - safe)
        top = above
    most = tl.max(top, 0)
    total = tl.sum(total * tl.exp(top - most), 0)
    for start in tl.range(0, n, STEP):
        at = start + tl.arange(0, STEP)
        entries = tl.load(x + row * stride + at, at < n, float("-inf")).to(tl.float32)
        shares = tl.exp(entries - most) / total
        tl.store(out + row * n + at, rounded(shares, out.dtype.element_ty), at < n)
