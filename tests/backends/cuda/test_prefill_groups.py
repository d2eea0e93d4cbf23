"""Prefill by groups of warps: what it compiles to, and on a Hopper GPU, where alone it runs, its results."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from irloom.backends.cuda.kernels.attention import run_decode, run_prefill
from irloom.backends.cuda.kernels.attention_call import Call
from irloom.backends.cuda.kernels.attention_tiles import decode_tiles, prefill_tiles
from irloom.backends.cuda.step import Step
from irloom.backends.cuda.work import Workspace
from irloom.ir.seqs import PagedCache

from .cross import compiled, copied, starts_late
from .test_attention import F8, Case, check

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9

SIGNATURE = {
    "out": "*bf16", "q_map": copied("bf16", 16, 16, 4, 64), "counts": "*i32",
    **dict.fromkeys(("table", "starts", "context"), "*i32"), **dict.fromkeys(("sinks", "slopes"), "*fp32"),
    **dict.fromkeys(("seqs", "out_row", "out_head", "table_row", "sink_row"), "i32"),
}  # fmt: skip
CONSTANTS: dict[str, Any] = {
    "GROUP": 4, "HEADS": 4, "KV": 8, "DIM": 128, "PAGE": 64, "SCALE": 0.088, "SOFTCAP": 0.0, "SLOPED": False,
    "SUNK": False, "WINDOW": 0, "CHUNK": 0, "KEYS": 128, "STAGES": 2, "CHAIN": True,
}  # fmt: skip


@pytest.mark.parametrize("keys", [copied("bf16", 16, 1, 64, 1, 64), copied("fp8e4nv", 8, 1, 64, 1, 128)])
def test_pages_are_copied_by_the_copy_engine_for_products_that_run_meanwhile(keys: str) -> None:
    made = compiled(
        "irloom.backends.cuda.kernels.prefill_groups", "prefill_groups",
        SIGNATURE | {"k_map": keys, "v_map": keys}, CONSTANTS, num_warps=4,
    )  # fmt: skip
    assert starts_late(made["ttgir"])
    assert "wgmma.mma_async.sync.aligned.m64n128k16" in made["ptx"]
    assert "wgmma.wait_group.sync.aligned 1" in made["ptx"]
    assert "cp.async.bulk.tensor.4d" in made["ptx"]
    assert "setmaxnreg.inc" in made["ptx"]
    assert made["shared"] <= 227 << 10


def by_groups(
    out: Tensor, q: Tensor, cache: PagedCache, step: Step, sinks: Tensor | None, slopes: Tensor | None, *,
    scale: float, window: int | None, softcap: float | None, chunk: int | None, values: int | None,
    work: Workspace,
) -> None:  # fmt: skip
    """``paged_attention`` whose prompts groups of warps attend with."""
    call = Call(out, q, cache, step, sinks, slopes, scale, window, softcap, chunk, values)
    tile = prefill_tiles(call)[0]
    assert tile.groups
    run_prefill(call, tile, work)
    run_decode(call, decode_tiles(call)[0], work)


OF_GROUPS: dict[str, Any] = {
    "group": st.sampled_from([1, 3, 4, 7, 16]),
    "dim": st.sampled_from([64, 128]),
    "page": st.sampled_from([16, 64, 256]),
    "dtype": st.sampled_from([torch.float16, torch.bfloat16]),
    "window": st.sampled_from([None, None, 1, 20, 300]),
    "chunk": st.sampled_from([None, None, 100]),
    "softcap": st.sampled_from([None, 5.0]),
    "slopes": st.booleans(),
    "sinks": st.sampled_from(["none", "heads", "rows"]),
    "spare": st.sampled_from([0, 3]),
}
"""What kernels by groups of warps are drawn cases of, whichever step they are for."""
cases = st.builds(
    Case,
    st.lists(st.sampled_from([1, 2, 17, 64, 200]), min_size=3, max_size=3).map(tuple),
    st.lists(st.integers(0, 600), min_size=3, max_size=3).map(tuple),
    kv=st.sampled_from([1, 2]),
    kept=st.sampled_from([None, None, *F8]),
    **OF_GROUPS,
)


@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
@settings(max_examples=12, deadline=None, derandomize=True)
@given(cases)
def test_any_prompts(case: Case) -> None:
    check(case, by_groups)


@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
def test_heads_of_256_features() -> None:
    check(Case((5, 1, 300), (3, 100, 70), dim=256, page=64, dtype=torch.bfloat16), by_groups)


@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
@pytest.mark.parametrize("alone", [0, 5, 140])
@pytest.mark.parametrize("kept", [None, torch.float8_e4m3fn])
def test_many_prompts_behind_and_around_sequences_of_one_token(alone: int, kept: torch.dtype | None) -> None:
    lengths = (1,) * alone + (40, 1, 1, 7, 1, 33, 2) * 45 + (1, 128)
    past = tuple(s % 70 for s in range(len(lengths)))
    kind = {"group": 4, "kv": 1, "dim": 64, "page": 16, "dtype": torch.bfloat16, "kept": kept}
    check(Case(lengths, past, **kind), by_groups)
