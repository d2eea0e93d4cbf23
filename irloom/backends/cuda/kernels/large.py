"""Products with many rows: cuBLAS, through torch, writing where it is told to."""

from __future__ import annotations

import torch


def matrix_product(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> None:
    """``out`` [T, N] = ``x @ weight.T``, with a ``bias`` [N] or a ``residual`` [T, N], or neither.

    ``residual`` may be ``out``, which costs least. Sums are in f32; those of f32 entries are not rounded to
    tf32, unless torch was told so.
    """
    assert bias is None or residual is None
    added = bias if residual is None else residual
    if added is None:
        torch.mm(x, weight.t(), out=out)
    elif same_memory(out, added):
        out.addmm_(x, weight.t())
    else:
        torch.addmm(added, x, weight.t(), out=out)


def same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether both are the same entries."""
    return a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
