"""From projections to what is attended to: ``rope_append`` and ``paged_attention`` as one."""

from __future__ import annotations

import torch
from torch import Tensor

from irloom.ir.seqs import PagedCache

from ..alike import alike
from ..step import Step
from ..work import Workspace
from .attention import lines, multiprocessors, paged_attention
from .attention_call import Call, Fresh, Tile
from .few_attention import few
from .mode import options
from .rope import frequencies, rope_append
from .tiles import power_of_two

FEW = 8
"""Sequences up to which one kernel does it all."""


def rope_attention(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: PagedCache,
    step: Step,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    inv_freq: Tensor | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    *,
    eps: float | None = None,
    theta: float = 10000.0,
    rotary: int | None = None,
    interleaved: bool = False,
    turn: float = 1.0,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
    work: Workspace,
) -> None:
    """``out`` of ``paged_attention`` over the cache that ``rope_append`` renews; ``turn`` is its ``scale``.

    No kernel writes ``q_norm``, ``k_norm`` and ``inv_freq``.
    """
    dim = q.shape[2]
    if alike() or not step.decode or step.seqs > FEW or dim != power_of_two(dim):
        turned = work.take(q.shape, q.dtype)
        given = {"eps": eps, "theta": theta, "rotary": rotary, "interleaved": interleaved, "scale": turn}
        rope_append(turned, q, k, v, cache, step, q_norm, k_norm, inv_freq, **given)
        attrs = {"scale": scale, "window": window, "softcap": softcap, "chunk": chunk}
        paged_attention(out, turned, cache, step, sinks, slopes, **attrs, work=work)
        return
    call = Call(out, q, cache, step, sinks, slopes, scale, window, softcap, chunk, None)
    pairs = (dim if rotary is None else rotary) // 2
    freq = frequencies(theta, 2 * pairs, q.device) if inv_freq is None else inv_freq
    fresh = Fresh(k, v, q_norm, k_norm, freq, eps, pairs, interleaved, turn)
    run_few(call, tile_of(call), work, fresh)


def tile_of(call: Call) -> Tile:
    """How few sequences are cut. A choice by the clock would write keys into the cache.

    A block is what the registers of a program hold, since it must not ask for much shared memory: where
    products run, a multiprocessor has an L1 cache in its place, and changes that only when nothing runs.
    """
    rows = min(64, max(16, power_of_two(call.group)))
    features = max(call.q.shape[2], call.value) * max(2, call.cache.k.element_size()) // 2
    keys = min(128, max(16, (1 << 14) // features))
    return Tile(keys, rows, 8 if keys * features >= 1 << 13 else 4, 1)


def run_few(call: Call, tile: Tile, work: Workspace, fresh: Fresh) -> None:
    """Attention of sequences that bring one token each, which their caches are yet to hold."""
    seqs, blocks = call.step.seqs, call.heads(tile.rows).blocks
    pieces = max(1, multiprocessors(call.q.device) // blocks)
    most = seqs * -(-call.table.shape[1] * call.cache.page // tile.keys)
    programs = min(pieces + seqs - 1, most)
    sums = work.take((blocks, programs, tile.rows, call.value), torch.float32)
    tops, totals = (work.take((blocks, programs, tile.rows), torch.float32) for _ in range(2))
    constants = call.constants(tile)
    for absent in ("REST", "SHARED"):
        del constants[absent]
    few[blocks, programs](
        call.out, sums, tops, totals, work.counters, *call.tensors(), *call.sizes(), pieces,
        *fresh.operands(call.cache), **fresh.constants(), **constants, SCAN=1 if seqs == 1 else FEW,
        PARTS=8, LINES=lines(call, tile), UNIT=2 if call.kept()[2] else 1,
        **options(num_warps=tile.warps, num_stages=tile.stages),
    )  # fmt: skip
