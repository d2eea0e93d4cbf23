"""Fused ops: ordinary ops whose bodies say what they replace."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from ..dims import Dim, product
from ..elem import AnyElem, Elem
from ..errors import IRError
from ..op import Attrs, op
from ..seqs import PagedCache, Seqs
from ..signature import Operand
from ..types import Type
from .activation import ACTIVATIONS, known
from .attention import check_entry, check_rotary, entry_bytes, rope
from .elementwise import softcap as softcap_op
from .matmul import linear
from .norm import layer_norm, rms_norm
from .quantize import product_elem


@op("*b d, *b d -> *b d")
def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``: the tail of a gated MLP as one kernel."""
    return F.silu(gate) * up


@op("*b d, *b d -> *b d")
def gelu_mul(gate: Tensor, up: Tensor, *, tanh: bool = False) -> Tensor:
    """``gelu(gate) * up``; ``tanh`` as in ``gelu``."""
    return F.gelu(gate, approximate="tanh" if tanh else "none") * up


@op("*b !k, n !k, n?, *b n? -> *b n")
def linear_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    act: str | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    elem: Elem | None = None,
) -> Tensor:
    """``residual + softcap(scale * act(x @ weight.T + bias))``, each part only where it is given.

    A product with its epilogue: what it makes is in memory once, finished. ``act`` is one of those of
    ``act_mul``, ``elem`` as in ``linear``. Splitting ``n`` is column-parallel; ``k`` stays whole, for a
    partial sum has no activation.
    """
    y = linear.reference(x, weight, bias, elem=elem)
    if act is not None:
        y = ACTIVATIONS[act](y)
    if scale != 1.0:
        y = y * scale
    if softcap is not None:
        y = softcap_op.reference(y, cap=softcap)
    return y if residual is None else residual + y


@linear_act.dtype
def _(operands: Sequence[Operand], attrs: Attrs) -> AnyElem:
    return product_elem("linear_act", operands[0], attrs)


@linear_act.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    if attrs["act"] is not None:
        known("linear_act", attrs["act"])
    x, residual = operands[0], operands[3] if len(operands) > 3 else None
    if isinstance(x, Type) and isinstance(residual, Type):
        made = product_elem("linear_act", x, attrs)
        if residual.elem != made:
            raise IRError(f"linear_act: operand `residual` is {residual}, but what it is added to is {made}")


@op("*b !d, *b !d, !d?, !d? -> *b !d, *b !d")
def add_rms_norm(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    inner: Tensor | None = None,
    *,
    eps: float = 1e-5,
    inner_eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """``s = x + y`` and ``rms_norm(s, weight)``: the step from one block of a residual stream to the next.

    With ``inner_eps`` a norm comes before the sum, too (post-norm blocks): ``s = x + rms_norm(y, inner)``.
    """
    s = x + (y if inner_eps is None else rms_norm.reference(y, inner, eps=inner_eps))
    return s, rms_norm.reference(s, weight, eps=eps)


@add_rms_norm.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    if len(operands) > 3 and operands[3] is not None and attrs["inner_eps"] is None:
        raise IRError(
            "add_rms_norm: operand `inner` is given, but no inner_eps", hint="inner_eps=1e-6, or no weight"
        )


@op("*b !d, *b !d, !d? -> *b !d")
def rms_norm_add(x: Tensor, y: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """``x + rms_norm(y, weight)``: what a post-norm block adds to its residual stream."""
    return x + rms_norm.reference(y, weight, eps=eps)


@op("*b !d, *b !d, !d?, !d? -> *b !d, *b !d")
def add_layer_norm(
    x: Tensor, y: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """``s = x + y`` and ``layer_norm(s, weight, bias)``."""
    s = x + y
    return s, layer_norm.reference(s, weight, bias, eps=eps)


@op("t (kv g) !d, t kv !d, t kv !e?, p kv !d, t, t %s, !d?, !d?, !f? -> t (kv g) !d, p kv !d")
def rope_append(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    cache: PagedCache,
    positions: Tensor,
    seqs: Seqs,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    inv_freq: Tensor | None = None,
    *,
    eps: float | None = None,
    theta: float = 10000.0,
    rotary: int | None = None,
    interleaved: bool = False,
    scale: float = 1.0,
) -> tuple[Tensor, PagedCache]:
    """All that lies between the projections and attention: ``rope`` of queries and keys, and ``kv_append``.

    With ``eps`` each head of both goes through ``rms_norm`` first (QK norm), by ``q_norm`` and ``k_norm``
    where given. Rotated queries, and the cache that holds this step's keys and values: rotated keys are
    never in memory. Operands may be columns of one packed row, which a kernel then reads once. Attributes
    are those of ``rope``.
    """
    if eps is not None:
        q, k = (rms_norm.reference(x, w, eps=eps) for x, w in ((q, q_norm), (k, k_norm)))
    turn = partial(
        rope.reference,
        positions=positions,
        inv_freq=inv_freq,
        theta=theta,
        rotary=rotary,
        interleaved=interleaved,
        scale=scale,
    )
    return turn(q), cache.append(turn(k), v, seqs)


@rope_append.dtype
def _(operands: Sequence[Operand], attrs: Attrs) -> tuple[AnyElem, ...]:
    q, cache = operands[0], operands[3]
    assert isinstance(q, Type) and isinstance(cache, Type)
    return q.elem, cache.elem


@rope_append.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    given = [*operands, *[None] * (9 - len(operands))]
    for x in given[:2]:
        check_rotary("rope_append", x, attrs["rotary"], given[8])
    check_entry("rope_append", given[3], given[2])
    if attrs["eps"] is None and (given[6] is not None or given[7] is not None):
        raise IRError("rope_append: the weight of a norm is given, but no eps", hint="eps=1e-6, or no weight")


@rope_append.flops
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """Those of ``rope``, and one per entry for a norm."""
    entries = sum((product(t.dims) for t in operands[:2] if isinstance(t, Type)), 0)
    return entries * (3 if attrs["eps"] is None else 4)


@rope_append.bytes
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """Every operand but the cache once, rotated queries, and the new entries of the cache."""
    q, cache = operands[0], operands[3]
    assert isinstance(q, Type) and isinstance(cache, Type)
    read = sum((t.nbytes for t in operands if isinstance(t, Type) and t is not cache), 0)
    return read + q.nbytes + entry_bytes(cache) * q.dims[0]
