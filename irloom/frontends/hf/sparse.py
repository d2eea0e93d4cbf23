"""Ops of sparse and compressed attention as ops of torch, and their translation back.

Tensors are the library's ``[1, T, ...]``; operands and attributes are those of the IR's ops, less ``seqs``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from irloom.frontends.hf.aten.core import rows, tensor, translates
from irloom.frontends.hf.views import View, viewed
from irloom.ir import ops

# q [1, T, H, D], keys [1, T, D], weight [1, T, H] -> [1, T, topk]
torch.library.define(
    "irloom::sparse_index", "(Tensor q, Tensor k, Tensor weight, int topk, int stride=1) -> Tensor"
)
# q [1, T, H, D], keys [1, T, D] -> [1, T, H, topk]
torch.library.define(
    "irloom::block_index", "(Tensor q, Tensor k, int block, int topk, int local=0) -> Tensor"
)
# q [1, T, H, D], k and v [1, T, KV, D] -> [1, T, H, D] and [1, T, H]; a window of 0 is none.
torch.library.define(
    "irloom::partial_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? sinks=None, Tensor? index=None, *, float scale, int window=0,"
    " int stride=1) -> (Tensor, Tensor)",
)
sparse_index = torch.ops.irloom.sparse_index
block_index = torch.ops.irloom.block_index
partial_attention = torch.ops.irloom.partial_attention


@torch.library.register_fake("irloom::sparse_index")
def _(q: Tensor, k: Tensor, weight: Tensor, topk: int, stride: int = 1) -> Tensor:
    return q.new_empty(*q.shape[:2], topk, dtype=torch.int32)


@torch.library.register_fake("irloom::block_index")
def _(q: Tensor, k: Tensor, block: int, topk: int, local: int = 0) -> Tensor:
    return q.new_empty(*q.shape[:3], topk, dtype=torch.int32)


@torch.library.register_fake("irloom::partial_attention")
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=torch.float32)


@translates("irloom.sparse_index.default")
def _(q: Any, k: Any, weight: Any, topk: int, stride: int = 1, *, seqs: Any) -> View:
    keys = rows(tensor(k).unsqueezed(2))
    best = ops.sparse_index(rows(q), keys, rows(weight), seqs, topk=topk, stride=stride)
    return viewed(best, (1, 2), 3)


@translates("irloom.block_index.default")
def _(q: Any, k: Any, block: int, topk: int, local: int = 0, *, seqs: Any) -> View:
    keys = rows(tensor(k).unsqueezed(2))
    best = ops.block_index(rows(q), keys, seqs, block=block, topk=topk, local=local)
    return viewed(best, (1, 2, 3), 4)


@translates("irloom.partial_attention.default")
def _(
    q: Any, k: Any, v: Any, sinks: Any = None, index: Any = None, *, seqs: Any, window: int = 0, **attrs: Any
) -> tuple[View, View]:
    given = [
        seqs,
        None if sinks is None else tensor(sinks).arranged((0,)),
        None if index is None else rows(index),
    ]
    while given[-1] is None:
        given.pop()
    keys = rows(k)
    values = keys if v is k else rows(v)
    out, total = ops.partial_attention(rows(q), keys, values, *given, window=window or None, **attrs)
    return viewed(out, (1, 2, 3), 4), viewed(total, (1, 2), 3)
