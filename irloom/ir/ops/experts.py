"""Mixtures of experts: products with weights that each token chooses."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..dims import Dim, product, sym
from ..elem import AnyElem, Elem
from ..errors import IRError
from ..op import Attrs, op
from ..signature import Operand
from ..types import Type
from .activation import ACTIVATIONS, known
from .elementwise import promoted
from .quantize import product_elem, rows_in

USED = sym("E")
"""Experts that a step uses, in counts of bytes: few tokens read few experts."""


@op("*b h, t k, %e n h, %e n? -> t k n")
def expert_linear(
    x: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None = None, *, elem: Elem | None = None
) -> Tensor:
    """``x @ weight[index[t, j]].T + bias[index[t, j]]`` for each of the ``k`` experts that a token chooses.

    ``x`` is a row per token, or already one per token and choice: [t, h] or [t, k, h]. An index outside of
    0 to e - 1 chooses no expert, and its row is zero. Each expert is applied once, to all of its rows.
    ``elem`` as in ``linear``.
    """
    x = rows_in(x, elem)
    rows = x if x.ndim == 3 else x[:, None].expand(-1, index.shape[1], -1)
    out = x.new_zeros(*index.shape, weight.shape[1])
    for e in range(len(weight)):
        its = index == e
        if its.any():
            shift = None if bias is None else bias[e].to(x.dtype)
            out[its] = F.linear(rows[its], weight[e].to(x.dtype), shift)
    return out


@expert_linear.dtype
def _(operands: Sequence[Operand], attrs: Attrs) -> AnyElem:
    return product_elem("expert_linear", operands[0], attrs)


@expert_linear.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    x, index = operands[:2]
    if not isinstance(x, Type) or not isinstance(index, Type):
        return  # the signature says what is wrong
    if x.rank not in (2, 3) or x.dims[:-1] != index.dims[: x.rank - 1]:
        raise IRError(
            f"expert_linear: operand `x` is {x}, but operand `index` ({index}) has other tokens or choices",
            hint="x is [t, h] or [t, k, h], index [t, k]",
        )
    if index.plain.kind not in ("int", "uint"):
        raise IRError(f"expert_linear: operand `index` is {index}", hint="it holds the numbers of experts")


@expert_linear.flops
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """Two per multiply-add of the chosen experts."""
    index, weight = operands[1], operands[2]
    assert isinstance(index, Type) and isinstance(weight, Type)
    return product(index.dims) * 2 * product(weight.dims[1:])


@expert_linear.bytes
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """The weights of the experts in use, once each, beside inputs and results."""
    x, index, weight, bias = (*operands, None)[:4]
    assert isinstance(x, Type) and isinstance(index, Type) and isinstance(weight, Type)
    each = [w.elem.nbytes((1, *w.dims[1:])) for w in (weight, bias) if isinstance(w, Type)]
    made = product_elem("expert_linear", x, attrs).nbytes((*index.dims, weight.dims[1]))
    return x.nbytes + index.nbytes + made + USED * sum(each, 0)


@op("t h, t k, t k, %e m h, %e n i, %e m?, %e n? -> t n")
def moe(
    x: Tensor,
    index: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    act: str = "silu",
    elem: Elem | None = None,
) -> Tensor:
    """The gated MLPs of the ``k`` experts that a token chooses, summed by ``weights`` [t, k].

    Each is ``down @ (act(gate) * up)``, with gate and up the halves of ``gate_up @ x``; ``act`` is one
    of ``act_mul``. The products are those of ``expert_linear``, ``elem`` as in ``linear``; what goes into
    ``down`` is not quantized.
    """
    gate, up = expert_linear.reference(x, index, gate_up, gate_up_bias, elem=elem).chunk(2, -1)
    gated = ACTIVATIONS[act](gate) * up
    out = expert_linear.reference(gated, index, down, down_bias)
    return (out * weights.unsqueeze(-1)).sum(1)


@moe.dtype
def _(operands: Sequence[Operand], attrs: Attrs) -> AnyElem:
    x = operands[0]
    assert isinstance(x, Type)
    return promoted([x.with_elem(product_elem("moe", x, attrs)), operands[2]], attrs)


@moe.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    index, gate_up, down = operands[1], operands[3], operands[4]
    known("moe", attrs["act"])
    if isinstance(index, Type) and index.plain.kind not in ("int", "uint"):
        raise IRError(f"moe: operand `index` is {index}", hint="it holds the numbers of experts")
    if isinstance(gate_up, Type) and isinstance(down, Type) and gate_up.dims[1:2] != (down.dims[-1] * 2,):
        raise IRError(
            f"moe: operand `gate_up` is {gate_up}, not two times as high as `down` ({down}) is wide"
        )


@moe.flops
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """Both products; the gate and the sum, one per entry each."""
    index, gate_up, down = operands[1], operands[3], operands[4]
    assert isinstance(index, Type) and isinstance(gate_up, Type) and isinstance(down, Type)
    products = 2 * (product(gate_up.dims[1:]) + product(down.dims[1:]))
    return product(index.dims) * (products + gate_up.dims[1] + 2 * down.dims[1])


@moe.bytes
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """The weights of the experts in use, once each, beside inputs and the result."""
    x, index, weights, *stacks = operands
    assert isinstance(x, Type) and isinstance(index, Type) and isinstance(weights, Type)
    given = [w for w in stacks if isinstance(w, Type)]
    made = product_elem("moe", x, attrs).nbytes((x.dims[0], given[1].dims[1]))
    each = sum((w.elem.nbytes((1, *w.dims[1:])) for w in given), 0)
    return x.nbytes + index.nbytes + weights.nbytes + made + USED * each


def experts_used(weight: Type, index: Type, tokens: int) -> int:
    """What ``USED`` is for a step of ``tokens``: as many experts as there are choices, at most all."""
    experts, choices = weight.dims[0], index.dims[-1]
    assert isinstance(experts, int) and isinstance(choices, int)
    return min(experts, tokens * choices)
