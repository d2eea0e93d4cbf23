"""Our own product for some dozens of rows, with a ring of boxes that is full before the tokens are there.

As ``streamed``, for Hopper alone: weights depend on nothing, so that a program asks for its first ones at
once, into shared memory, while the kernels in front still run. What is left when those have ended is to copy
the tokens, which are in the L2 cache. Two kernels share a multiprocessor where each takes half of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from ..quantized import Operand, scales_of, values_of
from ..work import Workspace
from .form import Form
from .mode import options, triton
from .tiled import scale_strides
from .tiles import row_stride


@dataclass(frozen=True)
class Ring:
    """``n`` rows of the weight (of each half, where gated), multiples of 64, by ``t`` tokens, ``k`` entries
    at a time. ``split`` programs share a sum.
    """

    n: int
    t: int
    k: int
    split: int = 1
    warps: int = 4
    stages: int = 4


@cache
def has_rings() -> bool:
    """Whether this GPU has what the kernel is made of."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


def ring_product(
    out: torch.Tensor,
    x: Operand,
    weight: Operand,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    form: Form,
    work: Workspace,
    tile: Ring,
) -> None:
    """As ``streamed_product``."""
    from .groups_mode import mapped
    from .ring_kernel import ring_kernel  # compiles for Hopper alone, and is not interpreted

    values, matrix = values_of(x), values_of(weight)
    (t, n), k = out.shape, values.shape[1]
    tiles = int(triton.cdiv(t, tile.t) * triton.cdiv(n, tile.n))
    parts = work.parts(tiles, tile.split, (1 + form.gated) * tile.n * tile.t)
    ring_kernel[(tiles * tile.split,)](
        out, mapped(values, tile.t, tile.k), mapped(matrix, tile.n, tile.k), scales_of(x),
        scales_of(weight), bias, residual, parts, work.counters, t, n, k, out.stride(0), row_stride(residual),
        scale_strides(x)[0], scale_strides(weight)[0], *form.numbers,
        **form.constants, SPLIT=tile.split, BN=tile.n, BT=tile.t, BK=tile.k, STAGES=tile.stages,
        WARPS=tile.warps, **options(num_warps=tile.warps, maxnreg=_registers(tile, form.gated)),
    )  # fmt: skip


def _registers(tile: Ring, gated: bool) -> int:
    """Registers of a thread at the start, as few as do: kernels behind this one start beside it."""
    sums = (1 + gated) * tile.n * tile.t // (32 * tile.warps)
    return 128 if sums > 64 else 104 if tile.t > 64 or tile.warps > 4 else 80
