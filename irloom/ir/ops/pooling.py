"""Pooling of blocks of tokens: one entry that stands for all tokens of a block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dims import Dim, product
from ..op import Attrs
from ..recurrent import recurrent
from ..signature import Operand
from ..types import Type


@recurrent("t r c, t r c, !n r c, t -> t c", state="!m !two r c")
def block_pool(
    x: Tensor, gate: Tensor, bias: Tensor, positions: Tensor, *, state: Tensor
) -> tuple[Tensor, ...]:
    """Blocks of ``n`` tokens pooled, each at its last token; zeros at all others.

    Every channel is a mean of its entries of ``x`` weighted by the softmax of ``gate + bias`` over the block.
    With ``r`` series blocks overlap: series 0 gives the block itself, series ``i`` the ``i``-th block before
    it, all in one softmax (compressed attention of DeepSeek-V4). The state is ``x`` and ``gate`` of the last
    ``r * n - 1`` tokens.
    """
    n, series, channels = bias.shape
    size = series * n
    rows, gates = torch.cat([state[:, 0], x.to(state.dtype)]), torch.cat([state[:, 1], gate.to(state.dtype)])
    out = x.new_zeros(len(x), channels)
    place = bias.float().flip(1).transpose(0, 1)
    for i in range(len(x)):
        at = int(positions[i])
        if (at + 1) % n:
            continue
        values, scores = (_blocks(part[i : i + size].float(), n) for part in (rows, gates))
        scores = (scores + place).flatten(0, 1)
        scores[: max(0, size - 1 - at)] = float("-inf")
        out[i] = (scores.softmax(0) * values.flatten(0, 1)).sum(0).to(out.dtype)
    return out, torch.stack([rows, gates], 1)[len(rows) - size + 1 :]


def _blocks(window: Tensor, n: int) -> Tensor:
    """Of ``window`` [r * n, r, c] each block's own series [r, n, c]: the last block's is series 0."""
    series = window.shape[1]
    blocks = window.reshape(series, n, series, -1)
    return torch.stack([blocks[i, :, series - 1 - i] for i in range(series)])


@block_pool.state
def _(operands: Sequence[Operand], attrs: Attrs) -> Type:
    x, bias = operands[0], operands[2]
    assert isinstance(x, Type) and isinstance(bias, Type)
    n, series = bias.dims[:2]
    return Type(x.elem, (n * series - 1, 2, *x.dims[1:]))


@block_pool.flops
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """Of every entry an exponential, a product and two sums, once per block."""
    x = operands[0]
    assert isinstance(x, Type)
    return product(x.dims) * 5
