"""Decoding with keys that a warp of its own has copied: what it compiles to, and results on a Hopper GPU."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from irloom.backends.cuda.kernels.attention import run_decode, run_prefill
from irloom.backends.cuda.kernels.attention_call import Call, Tile
from irloom.backends.cuda.kernels.attention_tiles import decode_group_tiles, decode_tiles, prefill_tiles
from irloom.backends.cuda.step import Step
from irloom.backends.cuda.work import Workspace
from irloom.ir.seqs import PagedCache

from .cross import compiled, copied, spilled, starts_late
from .test_attention import F8, Case, check
from .test_prefill_groups import HOPPER, OF_GROUPS

SIGNATURE = {
    **dict.fromkeys(("out", "q"), "*bf16"), **dict.fromkeys(("sums", "tops", "totals"), "*fp32"),
    **dict.fromkeys(("counts", "table", "starts", "context"), "*i32"),
    **dict.fromkeys(("sinks", "slopes"), "*fp32"), **dict.fromkeys(("seqs", "table_row", "sink_row"), "i32"),
    **dict.fromkeys(("q_row", "q_head", "out_row", "out_head"), "i32:16"),
}  # fmt: skip
CONSTANTS: dict[str, Any] = {
    "GROUP": 4, "HEADS": 4, "ROWS": 4, "DIM": 128, "PAGE": 64, "SCALE": 0.088, "SOFTCAP": 0.0,
    "SLOPED": False, "SUNK": False, "WINDOW": 0, "CHUNK": 0, "KEYS": 32, "STAGES": 3, "MIXED": False,
    "PARTS": 4, "CHAIN": True,
}  # fmt: skip


@pytest.mark.parametrize(("bits", "scan"), [(4, 1024), (5, 128)], ids=["e4m3", "e5m2"])
def test_a_warp_multiplies_without_others_what_the_copy_engine_brings(bits: int, scan: int) -> None:
    """Two programs have a multiprocessor: their blocks fill its memory, and their sums lie in registers.

    Products with the keys of a block are in front of the loop and in it, those with values in it and behind.
    """
    keys = copied("u16", 16, 1, 4, 32, 64)
    made = compiled(
        "irloom.backends.cuda.kernels.decode_groups", "decode_groups",
        SIGNATURE | {"k_map": keys, "v_map": keys}, CONSTANTS | {"PAIRS": bits, "SCAN": scan},
        num_warps=4, maxnreg=128,
    )  # fmt: skip
    ptx = made["ptx"]
    assert starts_late(made["ttgir"]) and "cp.async.bulk.tensor.4d" in ptx
    assert ptx.count("mma.sync.aligned.m16n8k16") == 4 * 32
    assert ptx.count("ldmatrix.sync.aligned.m8n8.x4.trans") == 2 * 8
    assert 96 << 10 <= made["shared"] <= 113 << 10
    assert spilled(ptx) == 0


def test_any_number_of_sequences_has_the_same_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those past 1,024 share a choice, so that nothing is timed or compiled for a larger engine."""
    monkeypatch.setattr("irloom.backends.cuda.kernels.attention_tiles.INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    kept = torch.zeros(1, 64, 8, 128).to(F8[0])
    wanted: dict[int, tuple[Tile, ...]] = {}
    for seqs in (1024, 1025, 5000):
        q, at = torch.zeros(seqs, 32, 128, dtype=torch.bfloat16), torch.zeros(seqs + 1, dtype=torch.int32)
        step = Step(at, at, at, at, at, {"full": at[:seqs, None]}, decode=True)
        call = Call(q, q, PagedCache(kept, kept), step, None, None, 0.3, None, None, None, None)
        wanted[seqs] = decode_tiles(call)
    assert wanted[5000] == wanted[1025] == wanted[1024]
    assert any(tile.groups for tile in wanted[1024])


def by_groups(
    which: int, out: Tensor, q: Tensor, cache: PagedCache, step: Step, sinks: Tensor | None,
    slopes: Tensor | None, *, scale: float, window: int | None, softcap: float | None, chunk: int | None,
    values: int | None, work: Workspace,
) -> None:  # fmt: skip
    """``paged_attention`` that decodes with one of its tiles of groups."""
    call = Call(out, q, cache, step, sinks, slopes, scale, window, softcap, chunk, values)
    tiles = decode_group_tiles(call)
    run_prefill(call, next(t for t in prefill_tiles(call) if not t.groups), work)
    run_decode(call, tiles[which % len(tiles)], work)


cases = st.builds(
    Case,
    st.lists(st.sampled_from([1, 1, 1, 9]), min_size=4, max_size=4).map(tuple),
    st.lists(st.integers(0, 1500), min_size=4, max_size=4).map(tuple),
    kv=st.sampled_from([4, 8]),
    kept=st.sampled_from(F8),
    **OF_GROUPS,
)


@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
@settings(max_examples=12, deadline=None, derandomize=True)
@given(cases, st.integers(0, 1))
def test_any_sequences(case: Case, which: int) -> None:
    check(case, partial(by_groups, which))


@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
@pytest.mark.parametrize(("seqs", "spare"), [(130, 100), (130, 900), (1100, 3100)])
def test_many_sequences_that_only_fill_the_bucket(seqs: int, spare: int) -> None:
    past = tuple(n % 130 for n in range(seqs))
    case = Case((1,) * seqs, past, group=4, kv=4, dim=128, page=64, dtype=torch.bfloat16, kept=F8[0],
                spare=spare)  # fmt: skip
    check(case, partial(by_groups, 0))
