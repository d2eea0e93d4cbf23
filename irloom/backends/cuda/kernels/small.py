"""Products of a few rows, at the speed of the memory: the decode steps of few sequences are made of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from irloom.backends.cuda.quantized import Operand, Quantized

from .few_rows import Strip
from .form import Form
from .mode import options, triton
from .small_bytes import small_kernel
from .small_int4 import small_int4_kernel

ROWS = 4
"""With more rows than this, multiplying takes longer than reading the weight does."""

STRIPS = {
    (True, False): (
        Strip(8, 4, 1, 2), Strip(4, 4, 4, 1), Strip(8, 4, 2, 1), Strip(4, 8, 1, 2), Strip(8, 8, 1, 2),
        Strip(16, 4, 1, 1),
    ),
    (True, True): (
        Strip(16, 4, 1, 1), Strip(8, 4, 1, 1), Strip(8, 2, 1, 2), Strip(8, 2, 1, 4), Strip(16, 2, 1, 2),
    ),
    (False, False): (Strip(4, 4, 1, 2), Strip(4, 4, 2, 1), Strip(4, 8, 1, 2), Strip(8, 4, 1, 1)),
    (False, True): (Strip(4, 4, 1, 1), Strip(8, 2, 1, 1), Strip(4, 2, 1, 2)),
}  # fmt: skip
"""What is worth trying for one row or more, and for weights of four bits or others; best guess first."""

BASES = "i4", "u4", "i8", "u8", "f8e4m3"


def small_product(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: Operand,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    norm: torch.Tensor | None,
    form: Form,
    strip: Strip,
) -> None:
    """``out`` [T, N] as ``form`` says of ``x`` [T, K] and a weight [N, K], gated [2 N, K], all in one kernel.

    ``strip`` is one of ``strips``. ``out`` may be ``residual``.
    """
    values, scales, zeros = weight, None, None
    if isinstance(weight, Quantized):
        values, scales, zeros = weight.values, weight.scales, weight.zeros
    assert isinstance(values, torch.Tensor)
    (t, k), n, scaling = x.shape, values.shape[0], Scaling.of(weight, x.shape[1])
    wide = _wide(weight)
    width, residual_row = strip.width(k, wide), residual.stride(0) if residual is not None else 0
    rows = bias, residual, norm, t, out.stride(0), x.stride(0), residual_row
    numbers = form.eps or 0.0, float(form.scale), form.softcap or 1.0
    constants = dict(
        N=n, K=k, NORM=form.eps is not None, GATED=form.gated, ACT=form.act, CAPPED=form.softcap is not None,
        GROUP=scaling.group, ROWS=triton.next_power_of_2(t), BN=strip.rows, BK=width, WIDE=wide,
        DEPTH=strip.ahead(k, width), **options(num_warps=strip.warps),
    )  # fmt: skip
    grid = (triton.cdiv(n, strip.rows),)
    if isinstance(weight, Quantized) and weight.quant.base.bits == 4:
        constants |= {"GROUP": scaling.group or k, "SIGNED": weight.quant.base.kind == "int"}
        small_int4_kernel[grid](out, x, values.view(torch.int32), scales, zeros, *rows, *numbers, **constants)
    else:
        constants |= {"SHARE": scaling.share, "ROUND": 0 if form.quant is None else form.quant.group or k}
        small_kernel[grid](out, x, values, scales, zeros, *rows, *numbers, **constants)


def strips(out: Operand, x: Operand, weight: Operand, form: Form) -> tuple[Strip, ...]:
    """The ways to run ``small_product`` on these, best guess first; none where it cannot be."""
    if isinstance(out, Quantized) or isinstance(x, Quantized) or not 0 < x.shape[0] <= ROWS:
        return ()
    if isinstance(weight, Quantized) and not _readable(weight, x.shape[1]):
        return ()
    four, to = isinstance(weight, Quantized) and weight.quant.base.bits == 4, form.quant
    if to is not None and (four or to.base.name != "f8e4m3" or x.shape[1] % (to.group or 1)):
        return ()
    return STRIPS[x.shape[0] == 1, four]


def _readable(weight: Quantized, k: int) -> bool:
    """Whether kernels read its entries, and those in 16 bytes have one scale."""
    quant, wide, group = weight.quant, _wide(weight), Scaling.of(weight, k).group
    if (
        weight.form != "rows"
        or quant.base.name not in BASES
        or quant.scale.name not in ("f16", "bf16", "f32")
    ):
        return False
    return (group in (0, k) or group % wide == 0) and (quant.base.bits == 8 or k % wide == 0)


def _wide(weight: Operand) -> int:
    """Entries of a weight that a thread reads in 16 bytes, or fewer, where fewer have one scale."""
    if not isinstance(weight, Quantized):
        return 16 // weight.element_size()
    return 16 if weight.quant.base.bits == 8 else min(32, weight.quant.group or 32)


@dataclass(frozen=True)
class Scaling:
    """How a weight's scales lie: ``share`` rows (0: all of them) by ``group`` entries (0: rows) have one."""

    share: int
    group: int

    @staticmethod
    def of(weight: Operand, k: int) -> Scaling:
        """That of a weight of rows of ``k``; blocks of rows are of a power of two."""
        if not isinstance(weight, Quantized):
            return Scaling(1, 0)
        n, (blocks, groups) = weight.values.shape[0], weight.scales.shape
        share = 1 if blocks == n else 0 if blocks == 1 else 1 << (-(-n // blocks) - 1).bit_length()
        return Scaling(share, k // groups if groups > 1 or weight.zeros is not None else 0)
