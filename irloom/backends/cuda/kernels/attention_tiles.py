"""How attention kernels are cut, by shape: candidates, and what they are timed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch

from ..step import Step
from ..tuning import choose
from ..work import Workspace
from .attention_call import Call, Tile
from .mode import INTERPRETED
from .tiles import power_of_two

SHARED = 227 << 10
"""Bytes of shared memory that a multiprocessor has for its programs."""

CONTEXT = 1024
"""Keys of a sequence that candidates are timed on, where a cache has room for as many."""

MOST = {"prefill": 8192, "decode": 1024}
"""Tokens of prompts, and sequences, past which tiles are not chosen anew."""


def decode_tiles(call: Call) -> tuple[Tile, ...]:
    """Candidates for sequences that bring one token, the one to take without measuring first.

    What counts is bytes in flight: programs on one multiprocessor times the blocks that each has asked for.
    """
    rows = min(64, max(16, power_of_two(call.group)))
    warps = 8 if rows * call.value >= 1 << 14 else 4
    cuts = [
        (64, warps, 4),
        (64, warps, 3),
        (128, warps, 3),
        (128, 8, 3),
        (32, warps, 4),
        (64, 2, 4),
        (32, 2, 4),
    ]
    grouped = decode_group_tiles(call)
    if grouped:
        cuts = [cuts[0], *cuts[-2:]]
    fixed, free = 2048, 1
    if rows == 64:  # products of warp groups: queries lie in shared memory, what is multiplied stays there
        fixed, free = 2048 + rows * call.q.shape[2] * call.q.element_size(), 0
    tiles = [
        Tile(keys, rows, warps, stages, min(4 if warps > 2 else 8, SHARED // used))
        for keys, warps, stages in cuts
        if (used := fixed + keys * _bytes(call) * (stages - free)) <= SHARED
    ]
    return (*grouped, *tiles) or (Tile(16, rows, warps, 2),)


def decode_group_tiles(call: Call) -> tuple[Tile, ...]:
    """Those of ``decode_tiles`` whose warps have a KV head each, and keys copied by one more: of fp8, where
    a warp has much to do for the bytes that it takes.
    """
    k = call.cache.k
    if not copies(call) or not call.kept()[2] or k.shape[3] > 128 or k.shape[2] % 4:
        return ()
    if call.group > 16:
        return ()
    deeper = 128 // k.shape[3]
    tiles = Tile(16, 16, 4, 4 * deeper, 2, groups=True), Tile(32, 16, 4, 3 * deeper, 2, groups=True)
    return tuple(t for t in tiles if t.keys <= k.shape[1])


def prefill_tiles(call: Call) -> tuple[Tile, ...]:
    """Candidates for sequences that bring more tokens, the one to take without measuring first."""
    cuts = [
        (64, 64, 4, 3),
        (64, 128, 8, 3),
        (64, 64, 4, 2),
        (128, 128, 8, 2),
        (128, 64, 4, 2),
        (32, 64, 4, 3),
    ]
    if call.value > 256:
        cuts = [(32, 64, 8, 2), (64, 64, 8, 2), (32, 64, 4, 2)]
    if call.q.dtype == torch.float32:
        cuts = [(32, 64, 4, 2), (16, 32, 4, 2)]
    row = call.q.shape[2] * call.q.element_size()
    tiles = [Tile(*cut) for cut in cuts if cut[1] * row + cut[0] * _bytes(call) * cut[3] <= SHARED]
    if may_group(call):
        tiles = [Tile(64 if call.value > 128 else 128, 128, 4, 2, groups=True), *tiles[:2]]
    return tuple(tiles) or (Tile(16, 16, 4, 1),)


def may_group(call: Call) -> bool:
    """Whether groups of warps may run it: on Hopper, with what its copy engine can copy.

    That takes boxes of a power of two of entries, between which there are a multiple of 16 bytes.
    """
    fp8 = call.cache.k.itemsize == 1
    return copies(call) and call.q.shape[2] in ((64, 128) if fp8 else (64, 128, 256)) and call.group <= 64


def copies(call: Call) -> bool:
    """Whether there is a copy engine that can copy queries, and pages of keys and values."""
    q, k, v = call.q, call.cache.k, call.cache.v
    fp8 = k.dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
    return (
        not INTERPRETED
        and torch.cuda.get_device_capability(q.device)[0] == 9
        and q.element_size() == 2
        and k.dtype == v.dtype
        and (fp8 or k.dtype == q.dtype)
        and call.values is None
        and q.shape[2] == k.shape[3] == v.shape[3] in (64, 128, 256)
        and k.shape[1] >= 16
        and k.shape[1] == power_of_two(k.shape[1])
        and not any(t.data_ptr() % 16 for t in (q, k, v))
        and not any(n * t.element_size() % 16 for t in (q, k, v) for n in t.stride()[:-1])
    )


def chosen(
    name: str, call: Call, tiles: Sequence[Tile], run: Callable[[Call, Tile, Workspace], None]
) -> Tile:
    """The fastest of ``tiles`` for calls such as this one: its shapes, and up to a power of two the tokens of
    prompts, or the sequences that decode, of which more than ``MOST`` fill the GPU as well. Nothing else
    counts, so what mixed steps take is known before, and what larger ones take.
    """
    if len(tiles) == 1 or INTERPRETED:
        return tiles[0]
    constants = tuple(v for k, v in call.constants(tiles[0]).items() if k != "BLOCK")
    step = call.step
    size = min(step.tokens if name == "prefill" else step.seqs, MOST[name])
    key = (call.q.dtype, call.cache.k.dtype, *constants, power_of_two(size), step.decode)
    usual = cache(lambda: typical(call))  # made for the clock alone, which runs outside of captures
    space = cache(lambda tile: Workspace(call.q.device))

    def timed(tile: Tile) -> None:
        space(tile).reset()
        run(usual(), tile, space(tile))

    return choose(f"attention.{name}", key, tiles, timed)


def typical(call: Call) -> Call:
    """The same call for a full bucket: sequences of ``CONTEXT`` keys, pages one after another.

    Tokens that are more than sequences belong to the first one; where there are fewer, the last sequences
    only fill the bucket. Its results are its own: the step in front of which a kernel is timed may have some
    already.
    """
    step, table, page = call.step, call.table, call.cache.page
    seqs, real = step.seqs, min(step.seqs, step.tokens)
    room = table.shape[1] * page
    brings = (torch.arange(seqs) < real).int()
    brings[0] = min(1 + step.tokens - real, room)
    context = (brings.sign() * min(CONTEXT, room)).maximum(brings)
    starts = torch.cat([torch.zeros(1, dtype=torch.int32), brings.cumsum(0, dtype=torch.int32)])
    pages = torch.arange(table.numel(), dtype=torch.int32).view(table.shape) % call.cache.k.shape[0]
    at = call.q.device
    made = Step(
        step.ids, step.positions, step.owner, starts.to(at), context.to(at), {call.cache.pool: pages.to(at)},
        step.decode,
    )  # fmt: skip
    return replace(call, step=made, out=torch.empty_like(call.out))


def _bytes(call: Call) -> int:
    """Bytes of a key and its value."""
    k = call.cache.k
    return (k.shape[3] + (0 if call.values is not None else call.value)) * k.element_size()
