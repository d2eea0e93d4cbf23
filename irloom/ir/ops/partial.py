"""Attention over part of what a token sees, to be joined with attention over the rest."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..elem import ELEMS, AnyElem
from ..op import Attrs, op
from ..seqs import PagedCache, Seqs
from ..signature import Operand
from ..types import Type
from .attention import (
    attention_flops,
    check_cache,
    check_limits,
    paged_attention_bytes,
    paged_attention_flops,
    value_sizes,
)
from .scores import Part, Scores, over_pages, over_tokens


@op("t (kv g) !d, t kv !d, t kv !e, t %s, (kv g)?, t *j? -> t (kv g) !e, t (kv g)")
def partial_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seqs: Seqs,
    sinks: Tensor | None = None,
    index: Tensor | None = None,
    *,
    scale: float,
    window: int | None = None,
    stride: int = 1,
) -> Part:
    """``attention``, and the logarithm f32[t, h] of the sum of its weights before they were normalised.

    Of every ``stride`` tokens only the last has a key, which stands for all of them: a token sees those
    that are complete, and ``index`` counts them. Two such results of one query are one softmax over both as
    ``w * a + (1 - w) * b`` with ``w = sigmoid(sum_a - sum_b)``. Where nothing is seen the sum is -inf.
    """
    how = Scores(scale, sinks, index=index, window=window, stride=stride)
    return over_tokens(q, k, v, seqs, how)


@op("t (kv g) !d, p kv !d, t %s, (kv g)?, t *j? -> t (kv g) !e, t (kv g)")
def paged_partial_attention(
    q: Tensor,
    cache: PagedCache,
    seqs: Seqs,
    sinks: Tensor | None = None,
    index: Tensor | None = None,
    *,
    scale: float,
    window: int | None = None,
    stride: int = 1,
    values: int | None = None,
) -> Part:
    """``partial_attention`` of each token over its whole sequence, read from a cache."""
    how = Scores(scale, sinks, index=index, window=window, stride=stride)
    return over_pages(q, cache, seqs, how, values)


def _elems(operands: Sequence[Operand], attrs: Attrs) -> tuple[AnyElem, AnyElem]:
    q = operands[0]
    assert isinstance(q, Type)
    return q.elem, ELEMS["f32"]


partial_attention.dtype(_elems)
partial_attention.verify(lambda operands, attrs: check_limits("partial_attention", attrs))
partial_attention.flops(attention_flops)
paged_partial_attention.dtype(_elems)
paged_partial_attention.sizes(value_sizes)


@paged_partial_attention.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    check_limits("paged_partial_attention", attrs)
    check_cache("paged_partial_attention", operands, attrs)


paged_partial_attention.flops(paged_attention_flops)
paged_partial_attention.bytes(paged_attention_bytes)
