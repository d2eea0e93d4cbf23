"""Attention over paged caches: of steps that decode, and of steps where some sequences bring more tokens.

In the latter two kernels run, one for sequences that bring one token and one for the others: which is whose
is read on the device, so that one graph serves every mixture.
"""

from __future__ import annotations

from functools import cache as remembered

import torch
from torch import Tensor

from irloom.ir.seqs import PagedCache

from ..alike import alike
from ..step import Step
from ..work import Workspace
from .attention_call import Call, Tile
from .attention_tiles import chosen, decode_tiles, prefill_tiles
from .decode_attention import decode
from .mode import INTERPRETED, options
from .prefill_attention import prefill
from .tiles import power_of_two


def paged_attention(
    out: Tensor,
    q: Tensor,
    cache: PagedCache,
    step: Step,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
    values: int | None = None,
    work: Workspace,
) -> None:
    """``out`` [t, h, e] of ``q`` [t, h, d], as the op says; rows that belong to nobody are left as they are.

    Of each tensor the last dim is contiguous. ``sinks`` [h] or [t, h], ``slopes`` [h].
    """
    call = Call(out, q, cache, step, sinks, slopes, scale, window, softcap, chunk, values)
    if alike():
        run_prefill(call, next(t for t in prefill_tiles(call) if not t.groups), work)
        return
    if not step.decode:
        run_prefill(call, chosen("prefill", call, prefill_tiles(call), run_prefill), work)
    run_decode(call, chosen("decode", call, decode_tiles(call), run_decode), work)


def run_decode(call: Call, tile: Tile, work: Workspace) -> None:
    """Attention of the sequences that bring one token, which their caches hold already."""
    if tile.groups:
        from .decode_groups import run_decode_groups  # compiles for Hopper alone, and is not interpreted

        run_decode_groups(call, tile, work)
        return
    step, blocks = call.step, call.heads(tile.rows).blocks
    most = step.seqs * -(-call.table.shape[1] * call.cache.page // tile.keys)
    programs = max(1, min(multiprocessors(call.q.device) * tile.resident // blocks, most))
    sums = work.take((blocks, 2 * programs, tile.rows, call.value), torch.float32)
    tops, totals = (work.take((blocks, 2 * programs, tile.rows), torch.float32) for _ in range(2))
    decode[blocks, programs](
        call.out, sums, tops, totals, work.counters, *call.tensors(), *call.sizes(),
        **call.constants(tile), MIXED=not step.decode, SCAN=scan(step.seqs), PARTS=8,
        LINES=lines(call, tile), **options(num_warps=tile.warps, num_stages=tile.stages),
    )  # fmt: skip


def scan(seqs: int) -> int:
    """Of how many sequences a program learns the lengths at once: of most steps in one go."""
    return next((some for some in (32, 128) if seqs <= some), 1024)


def lines(call: Call, tile: Tile) -> int:
    """Rows of a sequence that is put together at once: a thread has eight entries of each part, or fewer."""
    return max(1, min(power_of_two(call.heads(tile.rows).size), 256 * tile.warps // call.value))


def run_prefill(call: Call, tile: Tile, work: Workspace) -> None:
    """Attention of the sequences that bring more than one token; of all, where rows must be alike."""
    if tile.groups:
        from .prefill_groups import run_groups  # compiles for Hopper alone, and is not interpreted

        run_groups(call, tile, work)
        return
    heads = call.heads(tile.rows)
    blocks = call.step.tokens // (tile.rows // heads.size) + call.step.seqs
    prefill[heads.blocks, blocks](
        call.out, *call.tensors(), *call.sizes(), **call.constants(tile), ALIKE=alike(),
        **options(num_warps=tile.warps, num_stages=tile.stages),
    )  # fmt: skip


@remembered
def multiprocessors(device: torch.device) -> int:
    """How many the device has; in the interpreter as few as let parts of sequences meet."""
    if INTERPRETED:
        return 6
    return torch.cuda.get_device_properties(device).multi_processor_count
