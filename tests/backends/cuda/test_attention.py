"""Attention kernels against the op's body in f64: ragged, padded, in pages whose free places are poisoned."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels.attention import paged_attention, run_decode, run_prefill
from irloom.backends.cuda.kernels.attention_call import Call, Tile
from irloom.backends.cuda.kernels.attention_tiles import typical
from irloom.backends.cuda.step import Step
from irloom.backends.cuda.work import Workspace
from irloom.ir import ops
from irloom.ir.seqs import PagedCache, Seqs

from .cross import compiled
from .device import DEVICE

F8 = torch.float8_e4m3fn, torch.float8_e5m2
SEEDED = torch.Generator()
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    """Sequences that bring ``lengths`` tokens after ``past`` cached ones, and what they are attended with.

    The bucket has ``spare`` sequences and rows more; ``latent`` features of a key are its value where not 0.
    """

    lengths: tuple[int, ...]
    past: tuple[int, ...]
    group: int = 2
    kv: int = 2
    dim: int = 16
    value: int | None = None
    latent: int = 0
    page: int = 8
    dtype: torch.dtype = torch.float32
    kept: torch.dtype | None = None
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    slopes: bool = False
    sinks: str = "none"
    spare: int = 2

    @property
    def decodes(self) -> bool:
        """Whether every sequence brings one token."""
        return set(self.lengths) == {1}


def caches(case: Case) -> tuple[PagedCache, torch.Tensor]:
    """Keys and values of all tokens on scattered pages, NaN at places that hold none, and the page table."""
    contexts = [a + b for a, b in zip(case.lengths, case.past, strict=True)]
    counts = [-(-n // case.page) for n in contexts]
    table = torch.full((len(counts) + case.spare, max(counts) + 1), -1, dtype=torch.int32)
    pages = torch.randperm(sum(counts) + 2, generator=SEEDED).int().split([*counts, 2])
    holds = torch.zeros(sum(counts) + 2, case.page, dtype=torch.bool)
    for s, (own, n) in enumerate(zip(pages, contexts, strict=False)):
        table[s, : len(own)] = own
        holds[own.long()] = (torch.arange(len(own) * case.page) < n).view(len(own), case.page)
        if case.window is not None:  # pages behind the window are given back
            table[s, : max(0, case.past[s] - case.window + 1) // case.page] = -1
    value = 0 if case.latent else case.value or case.dim
    k, v = (
        torch.randn(*holds.shape, case.kv, n, generator=SEEDED)
        .masked_fill(~holds[..., None, None], torch.nan)
        .to(DEVICE)
        for n in (case.dim, value)
    )
    kept = case.kept or case.dtype
    return PagedCache(k.to(kept), v.to(kept)), table.to(DEVICE)


def check(case: Case, run: Callable[..., None] = paged_attention) -> None:
    """The kernels' rows are those of the op's body; rows and sequences of nobody change nothing."""
    heads, real, spare = case.group * case.kv, sum(case.lengths), case.spare
    cache, table = caches(case)
    seqs = Seqs.of(case.lengths, case.past, {"full": table[: len(case.lengths)]}).to(DEVICE)
    none = torch.zeros(spare, dtype=torch.int32, device=DEVICE)
    rows = torch.cat([seqs.positions, none])
    starts = torch.cat([seqs.starts, none + real])
    step = Step(rows, rows, rows, starts, torch.cat([seqs.context, none]), {"full": table}, case.decodes)
    packed = torch.full((real + spare, heads + 1, case.dim), torch.nan, dtype=case.dtype, device=DEVICE)
    packed[:real] = torch.randn(real, heads + 1, case.dim, generator=SEEDED)
    q = packed[:, :heads]
    shape = {"none": None, "heads": (heads,), "rows": (real + spare, heads)}[case.sinks]
    sinks = None if shape is None else torch.randn(shape, generator=SEEDED).to(DEVICE)
    slopes = torch.rand(heads, generator=SEEDED).to(DEVICE) if case.slopes else None
    attrs = {
        "scale": 0.3, "window": case.window, "chunk": case.chunk, "softcap": case.softcap,
        "values": case.latent or None,
    }  # fmt: skip
    size = case.latent or case.value or case.dim
    out = torch.full((real + spare, heads, size), torch.nan, dtype=case.dtype, device=DEVICE)
    work = Workspace(DEVICE)
    run(out, q, cache, step, sinks, slopes, **attrs, work=work)
    exact = PagedCache(cache.k.double(), cache.v.double())
    own = sinks[:real] if sinks is not None and sinks.dim() == 2 else sinks
    wanted = ops.paged_attention(q[:real].double(), exact, seqs, own, slopes, **attrs)
    torch.testing.assert_close(out[:real].double(), wanted, rtol=0.0, atol=TOLERANCE[case.dtype])
    assert out[real:].isnan().all()
    assert not work.counters.any()


def test_decode_shares_keys_of_ragged_sequences() -> None:
    """A long sequence is cut between programs, short ones are not; counts are zero again at the end."""
    check(Case((1,) * 4, (0, 700, 3, 64)))


def test_a_mixed_step_runs_both_kernels() -> None:
    check(Case((5, 1, 40, 1), (3, 100, 0, 70), group=3, page=16))


def test_trials_of_tiles_leave_a_steps_results_alone() -> None:
    """Tiles of one kernel are timed when the other has run: what that wrote stays."""
    kept = torch.randn(4, 16, 1, 16, device=DEVICE)
    table = torch.arange(4, dtype=torch.int32, device=DEVICE).view(2, 2)
    seqs = Seqs.of([4, 1], [5, 19], {"full": table}).to(DEVICE)
    q, out = torch.randn(5, 2, 16, device=DEVICE), torch.full((5, 2, 16), torch.nan, device=DEVICE)
    at = seqs.positions
    step = Step(at, at, at, seqs.starts, seqs.context, {"full": table})
    call = typical(Call(out, q, PagedCache(kept, kept), step, None, None, 0.3, None, None, None, None))
    for run in (run_prefill, run_decode):
        run(call, Tile(16, 16, 4, 1), Workspace(DEVICE))
    assert out.isnan().all()


def test_trials_of_tiles_have_no_more_rows_than_the_step() -> None:
    """A step of few tokens may be filled up to more sequences than it has rows."""
    kept = torch.randn(4, 16, 1, 16, device=DEVICE)
    rows, none = (torch.zeros(n, dtype=torch.int32, device=DEVICE) for n in (3, 8))
    q, tables = torch.randn(3, 2, 16, device=DEVICE), {"full": none.view(8, 1)}
    step = Step(rows, rows, rows, torch.zeros(9, dtype=torch.int32, device=DEVICE), none, tables)
    made = typical(Call(q, q, PagedCache(kept, kept), step, None, None, 0.3, None, None, None, None)).step
    assert made.starts.tolist() == [0, 1, 2, *[3] * 6]
    assert made.context.tolist() == [16] * 3 + [0] * 5


@pytest.mark.parametrize("kept", F8)
@pytest.mark.parametrize("dim", [64, 24])
def test_caches_of_fp8_are_read_as_f16(kept: torch.dtype, dim: int) -> None:
    """In pairs of features where a head has a power of two of them."""
    check(Case((9, 1, 1), (0, 90, 300), dtype=torch.bfloat16, kept=kept, page=32, dim=dim))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_keys_may_be_values_too(dtype: torch.dtype) -> None:
    check(Case((20, 1), (30, 200), group=5, kv=1, dim=72, latent=64, dtype=dtype))


def test_more_heads_share_a_kv_head_than_a_product_has_rows() -> None:
    check(Case((4, 1), (9, 90), group=100, kv=1, dim=24, latent=16))


def test_values_may_be_narrower_than_keys() -> None:
    check(Case((20, 1), (30, 200), dim=24, value=20, sinks="heads"))


cases = st.builds(
    Case,
    st.lists(st.sampled_from([1, 1, 2, 17, 40]), min_size=3, max_size=3).map(tuple),
    st.lists(st.integers(0, 200), min_size=3, max_size=3).map(tuple),
    group=st.sampled_from([1, 2, 3, 4, 7, 16]),
    kv=st.sampled_from([1, 2]),
    dim=st.sampled_from([64, 128, 256, 96, 8]),
    page=st.sampled_from([8, 16, 32, 64, 128]),
    dtype=st.sampled_from(list(TOLERANCE)),
    kept=st.sampled_from([None, None, *F8]),
    window=st.sampled_from([None, None, 1, 20, 128]),
    chunk=st.sampled_from([None, None, 16, 100]),
    softcap=st.sampled_from([None, 5.0]),
    slopes=st.booleans(),
    sinks=st.sampled_from(["none", "heads", "rows"]),
    spare=st.sampled_from([0, 3]),
)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(cases)
def test_any_attention(case: Case) -> None:
    check(case)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(cases)
def test_much_attention(case: Case) -> None:
    check(case)


def constants(rows: int, keys: int) -> dict[str, Any]:
    """Eight KV heads of 128 features for 32 query heads, in pages of 64."""
    strides = {
        "K_PAGE": 65536,
        "K_TOKEN": 1024,
        "K_HEAD": 128,
        "V_PAGE": 65536,
        "V_TOKEN": 1024,
        "V_HEAD": 128,
    }
    return strides | {
        "GROUP": 4, "HEADS": 4, "BLOCKS": 1, "ROWS": rows, "DIM": 128, "MAIN": 128, "REST": 0, "VALUE": 128,
        "VALUES": 128, "SHARED": False, "PAGE": 64, "SCALE": 0.088, "SOFTCAP": 0.0, "SLOPED": False,
        "SUNK": False, "WINDOW": 0, "CHUNK": 0, "PAIRS": 0, "BLOCK": keys, "CHAIN": True,
    }  # fmt: skip


SIGNATURE = {
    **dict.fromkeys(("out", "q", "k", "v"), "*bf16"), **dict.fromkeys(("table", "starts", "context"), "*i32"),
    **dict.fromkeys(("sinks", "slopes"), "*fp32"),
    **dict.fromkeys(("seqs", "q_row", "q_head", "out_row", "out_head", "table_row", "sink_row"), "i32"),
}  # fmt: skip

SUMS = dict.fromkeys(("sums", "tops", "totals"), "*fp32") | {"counts": "*i32"}


def test_prefill_compiles_to_warp_group_products_of_prefetched_keys() -> None:
    made = compiled(
        "irloom.backends.cuda.kernels.prefill_attention", "prefill", SIGNATURE, constants(128, 64),
        num_warps=8, num_stages=3,
    )  # fmt: skip
    assert "wgmma.mma_async" in made["ptx"]
    assert "cp.async.cg.shared.global [ %r" in made["ptx"]
    assert "ld.local" not in made["ptx"]


def test_decode_compiles_with_three_blocks_of_keys_in_flight() -> None:
    """Keys and values go from shared memory to tensor cores as matrices: in fp8 too, in pairs of entries."""
    signature = SIGNATURE | SUMS
    for pairs in (0, 4):
        kept = dict.fromkeys(("k", "v"), "*u16") if pairs else {}
        made = compiled(
            "irloom.backends.cuda.kernels.decode_attention", "decode", signature | kept,
            constants(16, 64) | {"MIXED": False, "SCAN": 32, "PARTS": 8, "LINES": 4, "PAIRS": pairs},
            num_warps=4, num_stages=4,
        )  # fmt: skip
        assert made["shared"] >= 3 * 2 * 64 * 128 * (1 if pairs else 2)
        assert "atom.global.gpu.acq_rel" in made["ptx"]
        assert "ldmatrix.sync.aligned.m8n8.x4.trans" in made["ptx"]
        assert "ld.shared.b8" not in made["ptx"]
        assert "ld.local" not in made["ptx"]


@pytest.mark.parametrize("pairs", [0, 4], ids=["bf16", "e4m3"])
def test_keys_are_on_their_way_before_the_kernel_in_front_has_ended(pairs: int) -> None:
    """And shared memory is small, so that products run beside it."""
    signature = SIGNATURE | SUMS | {"eps": "fp32", "pieces": "i32", "freq": "*fp32"}
    signature |= dict.fromkeys(("k_row", "k_head", "v_row", "v_head"), "i32")
    signature |= dict.fromkeys(("new_k", "new_v", "q_norm", "k_norm", "kept_k", "kept_v"), "*bf16")
    if pairs:
        signature |= dict.fromkeys(("k", "v"), "*u16") | dict.fromkeys(("kept_k", "kept_v"), "*fp8e4nv")
    given = constants(16, 128) | {
        "PAIRS": pairs, "UNIT": 2 if pairs else 1, "HALF": 64, "INTERLEAVED": False, "TURN": 1.0,
        "NORM": True, "SCAN": 1, "PARTS": 8, "LINES": 4,
    }  # fmt: skip
    for absent in ("REST", "SHARED"):
        del given[absent]
    made = compiled(
        "irloom.backends.cuda.kernels.few_attention", "few", signature, given, num_warps=8, num_stages=1
    )
    before, behind = made["ptx"].split("griddepcontrol.wait", 1)
    blocks = 8 if pairs else 16
    assert before.count("ld.global.v4") >= blocks > behind.count("ld.global.v4")
    assert made["shared"] <= 40 << 10
    assert "ld.local" not in made["ptx"]
