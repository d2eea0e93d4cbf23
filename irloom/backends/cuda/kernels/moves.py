"""Entries that only move: copies between tensors that lie in different ways, at the speed of memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .elementwise import elementwise


def copy(out: Tensor, x: Tensor) -> None:
    """``x``, broadcast to ``out``, in its element."""
    elementwise(out, x, formula="x0")


def reshape(out: Tensor, x: Tensor, *, dims: Sequence[int]) -> None:
    """The op ``reshape`` where its result is no view; ``out`` is contiguous."""
    copy(out.view(x.shape), x)


def permute(out: Tensor, x: Tensor, *, dims: Sequence[int]) -> None:
    """The op ``permute``."""
    copy(out, x.permute(*dims))


def expand(out: Tensor, x: Tensor, *, dims: Sequence[int]) -> None:
    """The op ``expand``."""
    copy(out, x)


def sliced(
    out: Tensor, x: Tensor, *, dim: int, start: int = 0, stop: int | None = None, step: int = 1
) -> None:
    """The op ``slice``."""
    copy(out, x[(slice(None),) * (dim % x.dim()) + (slice(start, stop, step),)])


def concat(out: Tensor, *xs: Tensor, dim: int) -> None:
    """The op ``concat``: one launch for each part."""
    for part, x in zip(out.split([x.shape[dim] for x in xs], dim), xs, strict=True):
        if x.numel():
            copy(part, x)
