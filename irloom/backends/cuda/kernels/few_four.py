"""Products of a few rows by four-bit weights: on tensor cores, which take eight columns in any case.

Two digits of each of four rows are eight. ``k`` is cut into slices: a warp has a slice or some, so many read
at a time for few rows of the weight. Digits are made once for all programs, while they begin to read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import torch

from irloom.ir.elem import Elem

from ..fragments import STRIP, blocks_of
from ..quantized import Operand, Quantized
from ..work import Workspace
from .few_four_kernel import few_four_kernel
from .form import Form
from .mode import options, tl, triton
from .row_digits import ROWS, row_digits, sets_of
from .tiles import row_stride

STEPS = 16
"""More steps in a lap make more instructions than stay near a multiprocessor."""
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
    work: Workspace,
    few: Few,
) -> None:
    """``out`` [T, N] as ``form`` says of ``x`` [T, K] and a weight [N, K] in fragments, gated [2 N, K].

    ``few`` is one of ``fews``. ``out`` may be ``residual``.
    """
    (t, k), strips, span = x.shape, weight.values.shape[0], weight.values.shape[2] * 16
    quant, normed = kinds(weight), form.eps is not None
    totals = weight.zeros is not None or not quant["SIGNED"]
    digits = row_digits(x, norm, normed=normed, totals=totals, span=span, work=work)
    laps, steps = laps_of(blocks_of(k, span), few.slices)
    few_four_kernel[(triton.cdiv(strips, few.strips),)](
        out, *digits, *words(weight), bias, residual, t, out.stride(0), row_stride(residual), form.eps or 0.0,
        *form.numbers,
        N=strips * STRIP, K=k, SPAN=span, **quant, NORM=normed, **form.constants, SETS=sets_of(t),
        SLICES=few.slices, LAPS=laps, STEPS=steps, STRIPS=few.strips,
        DEPTH=max(2, min(few.depth, 2 * steps)),
        **options(num_warps=few.warps, num_stages=1, maxnreg=few.registers),
    )  # fmt: skip


def laps_of(blocks: int, slices: int) -> tuple[int, int]:
    """Laps, and steps in each, that go through a slice's blocks.

    >>> laps_of(28, 4), laps_of(224, 8)
    ((1, 7), (2, 14))
    """
    steps = -(-blocks // slices)
    laps = -(-steps // STEPS)
    return laps, -(-steps // laps)


def fews(out: Operand, x: Operand, weight: Quantized, form: Form) -> list[Few]:
    """The ways to run ``few_four_product`` on these, best guess first; none where it cannot be."""
    if isinstance(out, Quantized) or not fits(x, weight, form):
        return []
    (rows, k), span = x.shape, weight.values.shape[2] * 16
    if not 0 < rows <= ROWS.value:
        return []
    some = FEW[rows > 4, form.gated]
    return some if blocks_of(k, span) >= some[0].slices else [SHORT]


def fits(x: Operand, weight: Quantized, form: Form) -> TypeGuard[torch.Tensor]:
    """Whether rows are of 16 bits and not rounded, and no strip has gates and what they are for."""
    plain = isinstance(x, torch.Tensor) and form.quant is None and x.dtype.itemsize == 2
    return plain and weight.values.shape[0] % (2 if form.gated else 1) == 0


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
    (False, False): [Few(4, 1, 4, 4, 168), Few(8, 1, 2, 4, 168), Few(8, 2, 2, 8, 128), Few(8, 1, 4, 8, 128)],
    (False, True): [Few(8, 2, 2, 8, 128)],
    (True, False): [Few(4, 1, 4, 4, 255), Few(8, 1, 2, 8, 128), Few(8, 2, 2, 8, 128)],
    (True, True): [Few(8, 2, 2, 8, 128)],
}
"""What is worth trying for more than four rows or not, gated or not."""
SHORT = Few(4, 2, 2, 4, 128)
"""For rows that have fewer blocks than slices."""
