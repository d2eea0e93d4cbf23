"""Products of up to sixteen rows on tensor cores, as fast as the weight comes from memory."""

from __future__ import annotations

import torch

from irloom.backends.cuda.quantized import Operand, Quantized, values_of
from irloom.ir.elem import elem_of

from .few_kernel import Sheaf, few_kernel
from .form import Form
from .mode import options, triton
from .tiled import scale_rows, scale_strides
from .tiles import row_stride
from .words import norm_operand

ROWS = 16
"""More take other kernels: programs would read them more often than the weight."""
SHEAVES = Sheaf(2, 4, 4), Sheaf(1, 8, 4), Sheaf(1, 4, 8)
"""What is worth trying; best guess first."""


def few_product(
    out: torch.Tensor,
    x: Operand,
    weight: Operand,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    norm: torch.Tensor | None,
    form: Form,
    sheaf: Sheaf,
) -> None:
    """``out`` [T, N] as ``form`` says, but for its rounding, of ``x`` [T, K] and a weight [N, K], gated
    [2 N, K]: plain both, or of e4m3 both, and then not normed.

    ``sheaf`` is one of ``sheaves``. ``out`` may be ``residual``.
    """
    values, rows = values_of(weight), values_of(x)
    (n, k), t, per = values.shape, rows.shape[0], 4 // values.element_size()
    few_kernel[(triton.cdiv(n, 16 * sheaf.sets),)](
        out, rows.view(torch.int32), values.view(torch.int32), _scales(x), _scales(weight), bias, residual,
        norm_operand(norm, rows), t, out.stride(0), rows.stride(0) // per, row_stride(residual),
        *scale_strides(x), *scale_strides(weight), scale_rows(weight), form.eps or 0.0, *form.numbers,
        N=n, K=k, KIND=elem_of(values.dtype).name, PER=per, NORM=form.eps is not None, **form.constants,
        GROUP=max(_group(x), _group(weight)), TILES=triton.cdiv(t, 8), SETS=sheaf.sets, WARPS=sheaf.warps,
        DEPTH=sheaf.depth,
        **options(num_warps=sheaf.warps, num_stages=1),
    )  # fmt: skip


def sheaves(out: Operand, x: Operand, weight: Operand, form: Form) -> tuple[Sheaf, ...]:
    """The ways to run ``few_product`` on these, ``x`` being rounded as ``form`` says by then; none where it
    cannot be.
    """
    values, rows = values_of(weight), values_of(x)
    (t, k), quant = rows.shape, x.quant if isinstance(x, Quantized) else form.quant
    if not 0 < t <= ROWS or isinstance(out, Quantized):
        return ()
    if isinstance(weight, Quantized):
        same = quant is not None and quant.base.name == weight.quant.base.name == "f8e4m3"
        groups = {g for g in (quant.group, weight.quant.group) if g} if quant is not None else {0}
        fits = same and weight.form == "rows" and weight.zeros is None
        fits = fits and len(groups) < 2 and not any(g % 64 for g in groups)
    else:
        # times a norm's weight, before it is divided by its size, a row may be more than an f16 holds
        some = (torch.bfloat16,) if form.eps is not None else (torch.bfloat16, torch.float16)
        fits = quant is None and values.dtype in some and rows.dtype == values.dtype
    per = 4 // values.element_size()
    rounds = isinstance(weight, Quantized) and not isinstance(x, Quantized)
    words = k % per == 0 and (rounds or rows.stride(0) % per == rows.data_ptr() % 4 == 0)
    return SHEAVES if fits and words else ()


def _scales(x: Operand) -> torch.Tensor | None:
    return x.scales if isinstance(x, Quantized) else None


def _group(x: Operand) -> int:
    """Entries of a row that share a scale, 0 where all do."""
    return x.values.shape[1] // x.scales.shape[1] if isinstance(x, Quantized) and x.scales.shape[1] > 1 else 0
