"""Products of a few rows by four-bit weights: on tensor cores, which take eight columns in any case.

One row fills them too: ``k`` is cut into slices, and each slice of the row is a column. So a warp has a
slice, many read at a time for few rows of the weight, and one multiplication serves all slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from irloom.ir.elem import Elem

from ..fragments import STRIP, blocks_of
from ..quantized import Operand, Quantized
from .few_four_kernel import few_four_kernel
from .form import Form
from .mode import options, tl, triton

ROWS = 8
"""More columns are for kernels that read rows from shared memory."""
STEPS = 8
"""More steps make more instructions than stay near a multiprocessor: a step is no lap of a loop."""
KINDS = {"f16": tl.float16, "bf16": tl.bfloat16, "u8": tl.uint8, "u4": tl.uint8, "i8": tl.int8, "i4": tl.int8}


@dataclass(frozen=True)
class Few:
    """What a program works on: ``strips`` of 16 rows of the weight; ``k`` in ``slices``, of each of which
    ``depth`` times two spans are in flight. A thread has at most so many ``registers``.
    """

    slices: int
    strips: int
    depth: int
    warps: int = 4
    registers: int = 255


def few_four_product(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: Quantized,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    norm: torch.Tensor | None,
    form: Form,
    few: Few,
) -> None:
    """``out`` [T, N] as ``form`` says of ``x`` [T, K] and a weight [N, K] in fragments, gated [2 N, K].

    ``few`` is one of ``fews``. ``out`` may be ``residual``.
    """
    (t, k), strips, span = x.shape, weight.values.shape[0], weight.values.shape[2] * 16
    steps = _steps(k, span, few)
    few_four_kernel[(triton.cdiv(strips, few.strips),)](
        out, x, *words(weight), bias, residual, norm, t, out.stride(0), x.stride(0),
        0 if residual is None else residual.stride(0), form.eps or 0.0, float(form.scale),
        float(form.softcap or 1.0),
        N=strips * STRIP, K=k, SPAN=span, **kinds(weight), NORM=form.eps is not None, GATED=form.gated,
        ACT=form.act, CAPPED=form.softcap is not None, SLICES=few.slices, COLUMNS=columns(t, few),
        STRIPS=few.strips, DEPTH=max(2, min(few.depth, 2 * steps)),
        **options(num_warps=few.warps, num_stages=1, maxnreg=few.registers),
    )  # fmt: skip


def fews(out: Operand, x: Operand, weight: Quantized, form: Form) -> list[Few]:
    """The ways to run ``few_four_product`` on these, best guess first; none where it cannot be."""
    if isinstance(out, Quantized) or isinstance(x, Quantized) or form.quant is not None:
        return []
    if not 0 < x.shape[0] <= ROWS or not fits(x, weight, form):
        return []
    (rows, k), span = x.shape, weight.values.shape[2] * 16
    some, blocks = FEW[1 << (rows - 1).bit_length(), form.gated], blocks_of(k, span)
    if rows <= SHORT.slices and blocks < some[0].slices:
        some = [SHORT]
    return [few for few in some if _steps(k, span, few) <= STEPS]


def _steps(k: int, span: int, few: Few) -> int:
    """Blocks of a row in each slice, which come after each other."""
    return -(-blocks_of(k, span) // few.slices)


def fits(x: torch.Tensor, weight: Quantized, form: Form) -> bool:
    """Whether rows are of 16 bits, and no strip has gates and what they are for."""
    return x.dtype.itemsize == 2 and weight.values.shape[0] % (2 if form.gated else 1) == 0


def columns(rows: int, few: Few) -> int:
    """Columns of the tensor cores that so many rows take."""
    return max(8, (1 << (rows - 1).bit_length()) * few.slices)


def words(weight: Quantized) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Values as pairs of entries, scales and zeros as words of four."""
    zeros = None
    if weight.zeros is not None:
        zeros = weight.zeros.view(torch.int64 if weight.zeros.itemsize == 2 else torch.int32)[..., 0]
    return weight.values.view(torch.int8), weight.scales.view(torch.int64)[..., 0], zeros


def kinds(weight: Quantized) -> dict[str, object]:
    """What words hold, for a kernel."""
    quant = weight.quant
    return {"SIGNED": int(quant.base.kind == "int"), "SCALE": _kind(quant.scale), "ZERO": _kind(quant.zero)}


def _kind(elem: Elem | None) -> object:
    return None if elem is None else KINDS[elem.name]


FEW = {
    (1, False): [Few(8, 1, 4, 4, 255), Few(8, 1, 2, 4, 168), Few(8, 2, 2, 8, 128)],
    (1, True): [Few(8, 2, 2, 8, 128)],
    (2, False): [Few(4, 2, 4, 8, 128)],
    (2, True): [Few(4, 2, 2, 8, 128)],
    (4, False): [Few(2, 4, 2, 8, 128)],
    (4, True): [Few(2, 4, 2, 8, 128)],
    (8, False): [Few(1, 4, 4, 4, 168)],
    (8, True): [Few(1, 4, 4, 4, 168)],
}  # fmt: skip
"""What is worth trying for so many rows, gated or not: slices times rows are eight."""
SHORT = Few(2, 4, 2, 8, 128)
"""For one row or two that have fewer blocks than slices."""
