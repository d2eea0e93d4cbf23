"""What a dim comes down to: sums, means, largest and smallest entries along it, wherever it is."""

from __future__ import annotations

import torch

from .curves import larger, smaller
from .mode import go_on, kernel, options, rounded, tl, triton, wait

TILE = 1024
"""Entries that a program has at once."""
DIMS = 4
"""Dims that a tensor may have."""


def reduced(out: torch.Tensor, x: torch.Tensor, *, op: str, dim: int) -> None:
    """The ops ``sum``, ``mean``, ``amax`` and ``amin`` along ``dim`` of ``x``, of any strides.

    Floats are added up in f32, whole numbers in i64.
    """
    dim %= x.ndim
    rest = [(x.shape[i], x.stride(i)) for i in range(x.ndim) if i != dim]
    (_, s0), (n1, s1), (n2, s2) = [(1, 0)] * (DIMS - 1 - len(rest)) + rest
    n, count = x.shape[dim], out.numel()
    whole = not x.is_floating_point()
    nothing = {"amax": -(2**63) if whole else float("-inf"), "amin": 2**63 - 1 if whole else float("inf")}
    step = min(TILE, triton.next_power_of_2(n))
    rows = min(TILE // step, triton.next_power_of_2(count))
    _reduced[(triton.cdiv(count, rows),)](
        out, x, count, n, x.stride(dim), s0, s1, s2, n1, n2, OP=op, NONE=nothing.get(op, 0),
        KIND=tl.int64 if whole else tl.float32, ROWS=rows, STEP=step, **options(num_warps=4),
    )  # fmt: skip


@kernel
def _reduced(
    out, x, count, n, along, s0, s1, s2, n1, n2,
    OP: tl.constexpr, NONE: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    CHAIN: tl.constexpr,
):  # fmt: skip
    """``ROWS`` results of ``count``; ``along`` is the step of the dim that goes, of ``n`` entries.

    Entries are ``KIND`` here, those that there are not ``NONE``.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = row // (n1 * n2) * s0 + row // n2 % n1 * s1 + row % n2 * s2
    made = tl.full((ROWS, STEP), NONE, KIND)
    go_on(CHAIN)
    wait(CHAIN)
    for first in range(0, n, STEP):
        at = first + tl.arange(0, STEP)
        live = (row < count)[:, None] & (at < n)[None]
        entries = tl.load(x + start[:, None] + at[None] * along, live, 0).to(KIND)
        entries = tl.where(live, entries, NONE)
        if OP == "amax":
            made = larger(made, entries)
        elif OP == "amin":
            made = smaller(made, entries)
        else:
            made += entries
    if OP == "amax":
        y = tl.max(made, 1)
    elif OP == "amin":
        y = tl.min(made, 1)
    else:
        y = tl.sum(made, 1)
    if OP == "mean":
        y /= n
    if out.dtype.element_ty.is_floating():
        broken = tl.max((made != made).to(tl.int32), 1) > 0
        y = rounded(tl.where(broken, float("nan"), y), out.dtype.element_ty)
    tl.store(out + row, y.to(out.dtype.element_ty), row < count)
