"""``rope_append`` and ``paged_attention`` as one kernel, against the bodies of both."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels.rope_attention import rope_attention
from irloom.backends.cuda.step import Step
from irloom.backends.cuda.work import Workspace
from irloom.ir import ops
from irloom.ir.seqs import PagedCache, Seqs

from .device import DEVICE

SEEDED = torch.Generator()
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
SPARE = 2


@dataclass(frozen=True)
class Case:
    """Sequences of ``contexts`` keys, of which this step brings the last ``brings``."""

    contexts: tuple[int, ...] = (5, 70, 200, 1, 65)
    brings: int = 1
    group: int = 2
    dim: int = 16
    dtype: torch.dtype = torch.float32
    kept: torch.dtype | None = None
    eps: float | None = 1e-6
    weights: bool = True
    rotary: int | None = None
    interleaved: bool = False
    turn: float = 1.0
    window: int | None = None
    softcap: float | None = None
    slopes: bool = False
    sinks: bool = False


def draw(*dims: int) -> torch.Tensor:
    return torch.randn(*dims, generator=SEEDED).to(DEVICE)


def check(case: Case) -> None:
    """What is attended to, and what the cache holds then: in its other places what it held before."""
    page, kv, count = 8, 2, len(case.contexts)
    heads, real = case.group * kv, count * case.brings
    width = max(case.contexts) // page + 2
    table = torch.randperm((count + SPARE) * width, generator=SEEDED).int().view(-1, width).to(DEVICE)
    past = [n - case.brings for n in case.contexts]
    seqs = Seqs.of([case.brings] * count, past, {"full": table[:count]}).to(DEVICE)
    kept = case.kept or case.dtype
    held_k, held_v = (draw(table.numel(), page, kv, case.dim).to(kept) for _ in range(2))
    held = PagedCache(held_k, held_v)
    none = torch.zeros(SPARE, dtype=torch.int32, device=DEVICE)
    owner = torch.repeat_interleave(torch.arange(count, device=DEVICE), case.brings).int()
    rows, starts = torch.cat([seqs.positions, none]), torch.cat([seqs.starts, none + real])
    context = torch.cat([seqs.context, none])
    step = Step(rows, rows, torch.cat([owner, none - 1]), starts, context, {"full": table}, case.brings == 1)
    packed = torch.full((real + SPARE, heads + 2 * kv, case.dim), torch.nan, device=DEVICE)
    packed[:real] = draw(real, heads + 2 * kv, case.dim)
    q, k, v = packed.to(case.dtype).split([heads, kv, kv], 1)
    weighted = case.eps is not None and case.weights
    q_norm, k_norm = (draw(case.dim).abs().to(case.dtype) if weighted else None for _ in range(2))
    slopes = draw(heads).abs() if case.slopes else None
    sinks = draw(heads) if case.sinks else None
    how = {
        "eps": case.eps, "theta": 1e4, "rotary": case.rotary, "interleaved": case.interleaved,
    }  # fmt: skip
    attrs = {"scale": 0.3, "window": case.window, "softcap": case.softcap}
    own = (x[:real] for x in (q, k, v))
    turned, wanted = ops.rope_append.reference(
        *own, held, rows[:real], seqs, q_norm, k_norm, None, **how, scale=case.turn
    )
    exact = PagedCache(wanted.k.double(), wanted.v.double())
    seen = ops.paged_attention(turned.double(), exact, seqs, sinks, slopes, **attrs)
    cache = PagedCache(held.k.clone(), held.v.clone(), in_place=True)
    out = torch.full((real + SPARE, heads, case.dim), torch.nan, dtype=case.dtype, device=DEVICE)
    work = Workspace(DEVICE)
    rope_attention(
        out,
        q,
        k,
        v,
        cache,
        step,
        q_norm,
        k_norm,
        None,
        sinks,
        slopes,
        **how,
        turn=case.turn,
        **attrs,
        work=work,
    )
    torch.testing.assert_close(out[:real].double(), seen, rtol=0.0, atol=TOLERANCE[case.dtype])
    torch.testing.assert_close(cache.k.float(), wanted.k.float(), rtol=0.13 if case.kept else 1e-2, atol=1e-5)
    assert torch.equal(cache.v.float(), wanted.v.float())
    assert out[real:].isnan().all()
    assert not work.counters.any()


def test_a_token_that_is_alone_sees_itself() -> None:
    check(Case((1, 1)))


@pytest.mark.parametrize("kept", [None, torch.float8_e4m3fn])
def test_a_long_sequence_is_cut(kept: torch.dtype | None) -> None:
    """And a short one beside it is not."""
    check(Case((900, 3, 257), dim=32, dtype=torch.bfloat16, kept=kept, sinks=True))


def test_steps_that_bring_more_tokens_run_the_parts() -> None:
    check(Case((9, 30), brings=3))


def test_heads_that_no_power_of_two_splits_run_the_parts() -> None:
    check(Case((9, 30), dim=24))


cases = st.builds(
    Case,
    group=st.sampled_from([1, 3, 4, 40]),
    dim=st.sampled_from([8, 32, 64]),
    dtype=st.sampled_from(list(TOLERANCE)),
    kept=st.sampled_from([None, torch.float8_e4m3fn, torch.float8_e5m2]),
    eps=st.sampled_from([None, 1e-6]),
    weights=st.booleans(),
    rotary=st.sampled_from([None, 4, 8]),
    interleaved=st.booleans(),
    turn=st.sampled_from([1.0, 1.3]),
    window=st.sampled_from([None, 1, 20]),
    softcap=st.sampled_from([None, 5.0]),
    slopes=st.booleans(),
    sinks=st.booleans(),
)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(cases)
def test_any_heads(case: Case) -> None:
    check(case)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(cases)
def test_many_heads(case: Case) -> None:
    check(case)
