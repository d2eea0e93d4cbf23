"""Gluon, Triton's language of layouts, copies and barriers: kernels for Hopper whose groups of warps differ.

Its own annotations are those of Python, not of what runs on the GPU: here everything may be anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language
from triton.experimental.gluon.language.nvidia import ampere, hopper
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra import cuda

from .keys import in_order

gl: Any = language
mbarrier: Any = hopper.mbarrier
mma_v2: Any = ampere.mma_v2
tma: Any = hopper.tma
warpgroup_mma: Any = hopper.warpgroup_mma
warpgroup_mma_wait: Any = hopper.warpgroup_mma_wait
fence_async_shared: Any = hopper.fence_async_shared
gdc: Any = cuda

__all__ = [
    "fence_async_shared", "gdc", "gl", "groups", "mapped", "mbarrier", "mma_v2", "tma", "varying_groups",
    "warpgroup_mma", "warpgroup_mma_wait",
]  # fmt: skip


def groups(fn: Any) -> Any:
    """Makes a kernel, or a function that such kernels call."""
    return in_order(gluon.jit(fn))


def varying_groups(*names: str) -> Callable[[Any], Any]:
    """Makes a kernel that is compiled once for all values of the numbers ``names``: see ``mode.varying``."""
    return lambda fn: in_order(gluon.jit(fn, do_not_specialize=names))


def mapped(x: Tensor, *box: int) -> TensorDescriptor:
    """What the copy engine knows of ``x``, of which it copies a ``box`` at a time: swizzled over a row of
    it, or over 128 bytes.
    """
    bits = 8 * x.element_size()
    layout = gl.NVMMASharedLayout(min(128, box[-1] * bits // 8), bits, rank=x.dim())
    return TensorDescriptor(x, [*x.shape], [*x.stride()], [*box], layout)
