"""Sparse attention: which earlier keys a token attends to, chosen by a small attention of its own."""

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
from .attention import entry_bytes


def _best(scores: Tensor, topk: int) -> Tensor:
    """The places i32[..., topk] of the highest ``scores`` [..., n], -1 where there are fewer above -inf."""
    values, index = scores.sort(dim=-1, descending=True, stable=True)
    index = index.masked_fill(values == float("-inf"), -1)[..., :topk]
    return torch.nn.functional.pad(index, (0, topk - index.shape[-1]), value=-1).int()


def _by_key(q: Tensor, keys: Tensor, weight: Tensor, first: int, topk: int, stride: int) -> Tensor:
    """``sparse_index`` of ``q`` [t, H, D] at positions ``first``.. over ``keys`` [n, D]."""
    scores = torch.einsum("thd,sd->ths", q.float(), keys.float()).relu()
    scores = torch.einsum("ths,th->ts", scores, weight.float())
    at = torch.arange(first, first + len(q), device=q.device)[:, None]
    position = torch.arange(len(keys), device=q.device) * stride + stride - 1
    return _best(scores.masked_fill(position > at, float("-inf")), topk)


@op("t h !d, t !one !d, t h, t %s -> t topk")
def sparse_index(q: Tensor, k: Tensor, weight: Tensor, seqs: Seqs, *, topk: int, stride: int = 1) -> Tensor:
    """The ``topk`` earlier keys that matter most to each token, -1 where there are fewer.

    The score of a key is ``sum_h weight[h] * relu(q[h] . k)``, all heads over one key (the lightning indexer
    of DeepSeek-V3.2). Of every ``stride`` tokens only the last has a key, which stands for all of them; the
    result counts keys. Of equal scores the earlier wins.
    """
    rows = ((q[a:b], k[a:b, 0][stride - 1 :: stride], weight[a:b]) for a, b in seqs.spans())
    return torch.cat([_by_key(*row, 0, topk, stride) for row in rows])


@op("t h !d, p !one !d, t h, t %s -> t topk")
def paged_sparse_index(
    q: Tensor, cache: PagedCache, weight: Tensor, seqs: Seqs, *, topk: int, stride: int = 1
) -> Tensor:
    """``sparse_index`` of each token over its whole sequence, read from a cache of keys."""
    parts: list[Tensor] = []
    for s, (a, b), first in seqs.steps():
        keys, _ = cache.read(seqs, s, 0)
        parts.append(_by_key(q[a:b], keys[:, 0], weight[a:b], first, topk, stride))
    return torch.cat(parts)


def _by_block(q: Tensor, keys: Tensor, first: int, block: int, topk: int, local: int) -> Tensor:
    """``block_index`` of ``q`` [t, H, D] at positions ``first``.. over ``keys`` [n, D]."""
    scores = torch.einsum("thd,sd->ths", q.float(), keys.float())
    at = torch.arange(first, first + len(q), device=q.device)[:, None, None]
    scores = scores.masked_fill(torch.arange(len(keys), device=q.device) > at, float("-inf"))
    scores = torch.nn.functional.pad(scores, (0, -len(keys) % block), value=float("-inf"))
    scores = scores.reshape(*scores.shape[:2], -1, block).amax(-1)
    behind = at // block - torch.arange(scores.shape[-1], device=q.device)
    return _best(scores.masked_fill((behind >= 0) & (behind < local), float("inf")), topk)


@op("t h !d, t !one !d, t %s -> t h topk")
def block_index(q: Tensor, k: Tensor, seqs: Seqs, *, block: int, topk: int, local: int = 0) -> Tensor:
    """The ``topk`` blocks of ``block`` tokens that matter most to each head, -1 where there are fewer.

    A block scores the highest ``q[h] . k`` of its tokens; the last ``local`` blocks, a token's own included,
    come first (block sparse attention of MiniMax-M3).
    """
    spans = seqs.spans()
    return torch.cat([_by_block(q[a:b], k[a:b, 0], 0, block, topk, local) for a, b in spans])


@op("t h !d, p !one !d, t %s -> t h topk")
def paged_block_index(
    q: Tensor, cache: PagedCache, seqs: Seqs, *, block: int, topk: int, local: int = 0
) -> Tensor:
    """``block_index`` of each token over its whole sequence, read from a cache of keys."""
    parts: list[Tensor] = []
    for s, (a, b), first in seqs.steps():
        keys, _ = cache.read(seqs, s, 0)
        parts.append(_by_block(q[a:b], keys[:, 0], first, block, topk, local))
    return torch.cat(parts)


def _i32(operands: Sequence[Operand], attrs: Attrs) -> AnyElem:
    return ELEMS["i32"]


def _flops(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """A product per head over the ``C`` tokens that a token could attend to."""
    q = operands[0]
    assert isinstance(q, Type)
    return product(q.dims) * 2 * sym("C")


for _op in (sparse_index, paged_sparse_index, block_index, paged_block_index):
    _op.dtype(_i32)
    _op.flops(_flops)


def _check(name: str, operands: Sequence[Operand], attrs: Attrs) -> None:
    cache, stride = operands[1], attrs.get("stride", 1)
    if (
        not isinstance(cache, Type)
        or not isinstance(cache.elem, Paged)
        or cache.elem.window is not None
        or cache.elem.stride != stride
    ):
        raise IRError(
            f"{name}: operand `cache` is {cache}, not a cache of the keys that it counts",
            hint=f"paged[elem, page](values=0{f', stride={stride}' if stride != 1 else ''})[P, 1, d]",
        )


def _bytes(operands: Sequence[Operand], attrs: Attrs) -> Dim:
    """Of the cache, the keys of the ``C`` tokens of each sequence."""
    q, cache = operands[:2]
    seqs = next(x for x in operands if isinstance(x, Type) and str(x.elem) == "seqs")
    assert isinstance(q, Type) and isinstance(cache, Type)
    return q.nbytes + entry_bytes(cache) * seqs.dims[1] * sym("C")


paged_sparse_index.verify(lambda operands, attrs: _check("paged_sparse_index", operands, attrs))
paged_block_index.verify(lambda operands, attrs: _check("paged_block_index", operands, attrs))
paged_sparse_index.bytes(_bytes)
paged_block_index.bytes(_bytes)
