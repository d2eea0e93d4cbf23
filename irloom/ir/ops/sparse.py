"""Sparse attention: which earlier tokens a token attends to, chosen by a small attention of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dims import Dim, product, sym
from ..elem import ELEMS, AnyElem, Paged
from ..errors import IRError
from ..op import Attrs, op
from ..seqs import PagedCache, Seqs
from ..signature import Operand
from ..types import Type


def _best(q: Tensor, keys: Tensor, weight: Tensor, first: int, topk: int) -> Tensor:
    """For ``q`` [t, H, D] at positions ``first``.. the places i32[t, topk] of the best ``keys`` [n, D]."""
    scores = torch.einsum("thd,sd->ths", q.float(), keys.float()).relu()
    scores = torch.einsum("ths,th->ts", scores, weight.float())
    at = torch.arange(first, first + len(q), device=q.device)[:, None]
    scores = scores.masked_fill(torch.arange(len(keys), device=q.device) > at, float("-inf"))
    values, index = scores.sort(dim=-1, descending=True, stable=True)
    index = index.masked_fill(values == float("-inf"), -1)[:, :topk]
    return torch.nn.functional.pad(index, (0, topk - index.shape[1]), value=-1).int()


@op("t h !d, t !one !d, t h, t %s -> t topk")
def sparse_index(q: Tensor, k: Tensor, weight: Tensor, seqs: Seqs, *, topk: int) -> Tensor:
    """The positions of the ``topk`` earlier tokens that matter most to each token, -1 where there are fewer.

    The score of a key is ``sum_h weight[h] * relu(q[h] . k)``, all heads over one key (the lightning indexer
    of DeepSeek-V3.2). Of equal scores the earlier wins.
    """
    spans = seqs.spans()
    return torch.cat([_best(q[a:b], k[a:b, 0], weight[a:b], 0, topk) for a, b in spans])


@op("t h !d, p !one !d, t h, t %s -> t topk")
def paged_sparse_index(q: Tensor, cache: PagedCache, weight: Tensor, seqs: Seqs, *, topk: int) -> Tensor:
    """``sparse_index`` of each token over its whole sequence, read from a cache of keys."""
    parts: list[Tensor] = []
    for s, (a, b) in enumerate(seqs.spans()):
        keys, _ = cache.read(seqs, s, 0)
        parts.append(_best(q[a:b], keys[:, 0], weight[a:b], int(seqs.context[s]) - (b - a), topk))
    return torch.cat(parts)


def _i32(operands: Sequence[Operand], attrs: Attrs) -> AnyElem:
    return ELEMS["i32"]


def _flops(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """A product per head over the ``C`` tokens that a token could attend to."""
    q = operands[0]
    assert isinstance(q, Type)
    return product(q.dims) * 2 * sym("C")


for _op in (sparse_index, paged_sparse_index):
    _op.dtype(_i32)
    _op.flops(_flops)


@paged_sparse_index.verify
def _(operands: Sequence[Operand], attrs: Attrs) -> None:
    cache = operands[1]
    if not isinstance(cache, Type) or not isinstance(cache.elem, Paged) or cache.elem.window is not None:
        raise IRError(
            f"paged_sparse_index: operand `cache` is {cache}, not a cache of all tokens",
            hint="paged[elem, page](values=0)[P, 1, d]",
        )


@paged_sparse_index.bytes
def _(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """Of the cache, the keys of the ``C`` tokens of each sequence."""
    q, cache, _, seqs = operands[:4]
    assert isinstance(q, Type) and isinstance(cache, Type) and isinstance(seqs, Type)
    assert isinstance(cache.elem, Paged)
    return q.nbytes + cache.elem.elem.nbytes(cache.dims[1:]) * seqs.dims[1] * sym("C")
