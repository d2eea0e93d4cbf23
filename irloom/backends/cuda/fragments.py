"""Four-bit weights in the order in which tensor cores take them, so that kernels only mask and shift.

A weight [N, K] lies as strips of 16 rows. Along a strip, four spans of ``span`` entries that share a scale
make a block of two pairs; a byte holds an entry of both spans of a pair, so what one mask leaves of a
register are four entries of one span. 32 of these by 16 rows are a fragment of 512 bytes, 16 for each thread
of a warp: thread ``4 r + c`` has those of rows ``r`` and ``r + 8`` and, of each 16 entries, of ``2 c``,
``2 c + 1``, ``2 c + 8`` and ``2 c + 9``. Scales and zeros of a row's blocks lie four and four together.
"""

from __future__ import annotations

import torch

from irloom.ir.elem import Quant
from irloom.ir.quantized import QuantizedTensor, pack4, unpack4

FORM = "fragments"
"""Values u8 [N / 16, blocks, span / 16, 512], scales and zeros [N, blocks, 4]; padded to whole blocks."""
SPANS = 128, 64, 32
STRIP = 16


def span_of(quant: Quant, dims: tuple[int, ...]) -> int:
    """Entries of a span of such a weight; 0 where it cannot lie so.

    >>> from irloom.ir.elem import ELEMS
    >>> span_of(Quant("i4g64", ELEMS["i4"], 64, ELEMS["bf16"]), (32, 640))
    64
    """
    zero = quant.zero
    if quant.base.bits != 4 or quant.rows != 1 or quant.scale.bits != 16 or len(dims) != 2 or dims[0] % STRIP:
        return 0
    if zero is not None and (zero.bits > 16 or (zero.bits == 16) != (zero.kind == "float")):
        return 0
    return next((span for span in SPANS if quant.group % span == 0), 0)


def blocks_of(k: int, span: int) -> int:
    """Blocks of a row of ``k``."""
    return -(-k // (4 * span))


def dims_of(dims: tuple[int, ...], span: int) -> tuple[int, ...]:
    """Dims of the values of a weight of ``dims``."""
    return dims[0] // STRIP, blocks_of(dims[1], span), span // 16, 512


def beside(dims: tuple[int, ...], span: int) -> tuple[int, ...]:
    """Dims of its scales, and of its zeros."""
    return dims[0], blocks_of(dims[1], span), 4


def arranged(x: QuantizedTensor, span: int) -> list[torch.Tensor]:
    """Values, scales, and zeros where there are some."""
    (n, k), blocks = x.dims, blocks_of(x.dims[1], span)
    bits = torch.nn.functional.pad(x.values.view(torch.uint8) & 15, (0, blocks * 4 * span - k))
    bits = bits.view(n // STRIP, 2, 8, blocks, 2, 2, span // 32, 2, 2, 4, 2)
    values = pack4(bits.permute(0, 3, 4, 6, 2, 9, 7, 1, 8, 10, 5)).reshape(dims_of(x.dims, span))
    given = [x.scales, *([] if x.zeros is None else [x.zeros])]
    return [values, *(_by_block(t, k, span) for t in given)]


def plain(
    values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, quant: Quant
) -> QuantizedTensor:
    """What was arranged; entries of padding, whose scales are 0, are left in."""
    strips, blocks, fragments, _ = values.shape
    bits = unpack4(values, quant.base).view(strips, blocks, 2, fragments // 2, 8, 4, 2, 2, 2, 2, 2)
    rows = bits.permute(0, 7, 4, 1, 2, 10, 3, 6, 8, 5, 9).reshape(strips * STRIP, -1)
    zeros = None if zeros is None else zeros.flatten(1)
    return QuantizedTensor(rows, scales.flatten(1), zeros, quant)


def _by_block(x: torch.Tensor, k: int, span: int) -> torch.Tensor:
    """Scales or zeros [N, groups] of rows of ``k``, one for each span [N, blocks, 4]."""
    n, groups = x.shape
    blocks = blocks_of(k, span)
    each = x.expand(n, -(-k // span)) if groups == 1 else x.repeat_interleave(k // groups // span, 1)
    return torch.nn.functional.pad(each, (0, 4 * blocks - each.shape[1])).view(n, blocks, 4)
