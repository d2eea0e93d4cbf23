"""Products of a few rows, at the speed of the memory: the decode steps of few sequences are made of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from irloom.backends.cuda.quantized import Operand, Quantized
from irloom.ir.elem import ELEMS, elem_of

from .attention import multiprocessors
from .eight_bits import Sweep, sweep_kernel
from .few_rows import Strip
from .form import Form
from .mode import INTERPRETED, options, triton
from .small_kernel import small_kernel
from .tiles import power_of_two, row_stride
from .words import norm_operand

ROWS = 4
"""So many are worth the interpreter's time: on a GPU two rows or more want tensor cores."""

STRIPS = {
    (1, 16): (
        Strip(8, 1, 4, 2), Strip(8, 2, 4, 2), Strip(4, 1, 4, 4), Strip(8, 1, 8, 2), Strip(4, 2, 4, 4),
    ),
    (1, 8): (
        Strip(8, 2, 4, 2), Strip(4, 4, 8, 4), Strip(4, 4, 4, 4), Strip(8, 4, 8, 2), Strip(4, 2, 8, 2),
    ),
    (1, 4): (Strip(8, 2, 4, 2), Strip(8, 4, 4, 2), Strip(4, 4, 4, 4), Strip(8, 2, 2, 2)),
    (2, 4): (Strip(4, 2, 4, 2), Strip(4, 4, 4, 2)),
}  # fmt: skip
"""What is worth trying for so many rows, and for entries of so many bits; best guess first."""

SWEEPS = Sweep(8, 4, 4, 1), Sweep(8, 2, 8, 1), Sweep(8, 3, 4, 2)
"""What is worth trying for one row and a weight that are both of e4m3."""

TALL = Strip(256, 1, 1, 1)
"""For the interpreter, which takes as long for a program of few rows."""
BASES = "i4", "u4", "i8", "u8", "f8e4m3"
SCALES = "f16", "bf16", "f32"


def small_product(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: Operand,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    norm: torch.Tensor | None,
    form: Form,
    strip: Strip | Sweep,
) -> None:
    """``out`` [T, N] as ``form`` says of ``x`` [T, K] and a weight [N, K], gated [2 N, K], all in one kernel.

    ``strip`` is one of ``strips``. ``out`` may be ``residual``.
    """
    if isinstance(strip, Sweep):
        assert isinstance(weight, Quantized)
        _sweep(out, x, weight, bias, residual, norm, form, strip)
        return
    values, scales, zeros = weight, None, None
    if isinstance(weight, Quantized):
        values, scales, zeros = weight.values, weight.scales, weight.zeros
    assert isinstance(values, torch.Tensor)
    (t, k), n, scaling = x.shape, values.shape[0], Scaling.of(weight, x.shape[1])
    wide = _wide(weight)
    width = strip.width(k, wide)
    rows = bias, residual, norm, t, out.stride(0), x.stride(0), row_stride(residual)
    kind = weight.quant.base.name if isinstance(weight, Quantized) else elem_of(values.dtype).name
    per = 32 // ELEMS[kind].bits
    grid = (triton.cdiv(n, strip.rows * strip.parts),)
    words = values.view(torch.int32)
    small_kernel[grid](
        out, x, words, scales, zeros, *rows, form.eps or 0.0, *form.numbers,
        N=n, K=k, KIND=kind, PER=per, NORM=form.eps is not None, **form.constants, SHARE=scaling.share,
        GROUP=scaling.group, ROUND=0 if form.quant is None else form.quant.group or k,
        ROWS=triton.next_power_of_2(t),
        PARTS=strip.parts, BN=strip.rows, BK=width, WIDE=wide, DEPTH=strip.ahead(k, width),
        **options(num_warps=strip.warps, num_stages=1),
    )  # fmt: skip


def _sweep(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: Quantized,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    norm: torch.Tensor | None,
    form: Form,
    sweep: Sweep,
) -> None:
    """``small_product`` of one row and a weight that are both of e4m3."""
    (n, k), scaling = weight.values.shape, Scaling.of(weight, x.shape[1])
    assert form.quant is not None
    width = min(sweep.warps * 32 * 16, power_of_two(k))
    parts = -(-n // sweep.rows)
    programs = min(parts, sweep.programs * multiprocessors(out.device))
    sweep_kernel[(programs,)](
        out, x.view(torch.int32), weight.values.view(torch.int32), weight.scales, bias, residual,
        norm_operand(norm, x),
        out.stride(0), row_stride(residual), form.eps or 0.0, *form.numbers,
        N=n, K=k, KIND=elem_of(x.dtype).name, NORM=form.eps is not None, **form.constants,
        SHARE=scaling.share, GROUP=scaling.group, ROUND=form.quant.group or k, PARTS=-(-parts // programs),
        BN=sweep.rows, BK=width, DEPTH=sweep.depth,
        **options(num_warps=sweep.warps, num_stages=1, maxnreg=sweep.registers),
    )  # fmt: skip


def strips(out: Operand, x: Operand, weight: Operand, form: Form) -> tuple[Strip | Sweep, ...]:
    """The ways to run ``small_product`` on these, best guess first; none where it cannot be."""
    if isinstance(out, Quantized) or isinstance(x, Quantized):
        return ()
    (t, k), to, bits = x.shape, form.quant, 16
    if isinstance(weight, Quantized):
        if not _readable(weight, k):
            return ()
        bits = weight.quant.base.bits
    elif k * weight.element_size() % 4:
        return ()
    if not 0 < t <= ROWS:
        return ()
    if to is not None and (to.base.name != "f8e4m3" or to.group & (to.group - 1) or k % (to.group or 1)):
        return ()
    sweeps = SWEEPS if _sweeps(x, weight, form) else ()
    some = (*sweeps, *STRIPS.get((t, bits), ()))
    return (TALL, *some) if INTERPRETED else some


def _sweeps(x: torch.Tensor, weight: Operand, form: Form) -> bool:
    """Whether one row and the weight are of e4m3, and sixteen entries that lie side by side share scales."""
    (t, k), to = x.shape, form.quant
    if not isinstance(weight, Quantized) or weight.quant.base.name != "f8e4m3" or t > 1 or k % 16:
        return False
    group = Scaling.of(weight, k).group
    sixteen = to is not None and to.group % 16 == 0 and group % 16 == 0
    return sixteen and x.dtype != torch.float32 and x.data_ptr() % 4 == x.stride(0) % 2 == 0


def _readable(weight: Quantized, k: int) -> bool:
    """Whether the kernel reads its entries, and those of a thread have one scale."""
    quant, wide, group = weight.quant, _wide(weight), Scaling.of(weight, k).group
    if weight.form != "rows" or quant.base.name not in BASES or quant.scale.name not in SCALES:
        return False
    fills = wide * quant.base.bits >= 32 and k * quant.base.bits % 32 == 0
    return fills and (group in (0, k) or group % wide == 0)


def _wide(weight: Operand) -> int:
    """Entries of a weight in 16 bytes, or as many as have one scale: what a thread has at once."""
    if not isinstance(weight, Quantized):
        return 16 // weight.element_size()
    group = weight.quant.group or 32
    return min(128 // weight.quant.base.bits, group & -group)


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
        share = 1 if blocks == n else 0 if blocks == 1 else power_of_two(-(-n // blocks))
        return Scaling(share, k // groups if groups > 1 or weight.zeros is not None else 0)
