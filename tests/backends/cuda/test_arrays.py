"""What a step brings and tells: by kernels that read and write the host's memory, in a ring of steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.arrays import STEPS, StepArrays
from irloom.backends.cuda.buckets import Bucket, Buckets
from irloom.ir.plan import Pool
from irloom.runtime.core import BROKEN, DRAW, Batch
from tests.backends.cuda.cross import compiled
from tests.backends.cuda.device import DEVICE

CONTEXT = 1500
POOLS = Pool("kv", None, 16, 1, pages=99), Pool("states", 2, 700, 1, pages=99, cut=True)
BUCKETS = Buckets(64, 12)


def drawn(draw: np.random.Generator, counts: list[int]) -> Batch:
    """A step of sequences that bring so many tokens; every number in it is random."""
    seqs, tokens = len(counts), sum(counts)
    longest = int(draw.integers(max(counts), CONTEXT + 1))
    ends = draw.integers(max(counts), longest + 1, seqs)
    draws = draw.integers(0, 256, (seqs, DRAW.itemsize), np.uint8).view(DRAW)[:, 0]
    late = draw.integers(-1, seqs, tokens)
    return Batch(
        tokens=draw.integers(0, 1000, tokens, np.int32),
        positions=draw.integers(0, CONTEXT, tokens, np.int32),
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        context=ends.astype(np.int32),
        tables=tuple(draw.integers(0, 99, (seqs, -(-longest // p.page)), np.int32) for p in POOLS),
        sampling=[None] * seqs,
        draws=draws,
        late=late.astype(np.int32),
    )


def arrived(arrays: StepArrays, batch: Batch, chosen: torch.Tensor) -> None:
    """Bring a step there, and see that all of it has come."""
    tokens, seqs = len(batch.tokens), len(batch.context)
    bucket = BUCKETS.of(tokens, seqs)
    arrays.block.fill_(-7)
    arrays.load(batch, bucket)
    arrays.arrive(bucket, chosen)
    step, draws = arrays.there(bucket)
    known = np.where(batch.late >= 0, np.maximum(chosen.cpu().numpy()[batch.late], 0), batch.tokens)
    filled = bucket.tokens - tokens
    assert step.ids.tolist() == [*known, *[0] * filled]
    assert step.positions.tolist() == [*batch.positions, *[0] * filled]
    owners = np.repeat(np.arange(seqs), np.diff(batch.starts))
    assert step.owner.tolist() == [*owners, *[-1] * filled]
    assert step.starts.tolist() == [*batch.starts, *[tokens] * (bucket.seqs - seqs)]
    assert step.context.tolist() == [*batch.context, *[0] * (bucket.seqs - seqs)]
    assert draws[:seqs].cpu().numpy().tobytes() == batch.draws.tobytes()
    assert not draws[seqs:].any()
    for pool, table in zip(POOLS, batch.tables, strict=True):
        there = step.tables[pool.name]
        assert there.shape[1] % 16 == 0 and there.shape[1] >= CONTEXT / pool.page
        assert there[:seqs, : table.shape[1]].tolist() == table.tolist()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=12), max_size=5))
def test_what_the_host_says_arrives_and_what_is_chosen_is_told(seed: int, steps: list[list[int]]) -> None:
    """Steps of any sizes one after another, with tokens of the step before; answers stay for three."""
    draw = np.random.default_rng(seed)
    arrays = StepArrays(POOLS, BUCKETS.largest, CONTEXT, DEVICE)
    chosen = torch.full((BUCKETS.largest.seqs,), BROKEN, dtype=torch.int32, device=DEVICE)
    answers = []
    for counts in steps:
        arrived(arrays, drawn(draw, counts), chosen)
        made = draw.integers(BROKEN, 1000, len(chosen), np.int32)
        chosen.copy_(torch.from_numpy(made))
        arrays.leave(chosen)
        arrays.sent()
        answers.append((arrays.answer(len(counts)), made[: len(counts)].tolist()))
        for sent, tokens in answers[-STEPS:]:
            if sent.done is not None:
                sent.done.synchronize()
            assert sent.tokens.tolist() == tokens


def test_tokens_that_came_instead_are_told() -> None:
    arrays = StepArrays(POOLS, BUCKETS.largest, CONTEXT, DEVICE)
    chosen = torch.arange(8, dtype=torch.int32, device=DEVICE)
    arrived(arrays, drawn(np.random.default_rng(1), [1] * 8), chosen)
    arrays.leave(chosen)
    arrays.sent()
    sent = arrays.answer(5, instead=chosen + 10)
    if sent.done is not None:
        sent.done.synchronize()
    assert sent.tokens.tolist() == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("ran", ["nothing", "its first kernel", "all of it"])
def test_the_step_behind_one_that_was_broken_off_arrives(ran: str) -> None:
    """Whatever of that one the device has run, and whoever broke it off."""
    draw = np.random.default_rng(2)
    arrays = StepArrays(POOLS, BUCKETS.largest, CONTEXT, DEVICE)
    chosen = torch.zeros(BUCKETS.largest.seqs, dtype=torch.int32, device=DEVICE)
    for counts in ([3, 1], [1], [1, 1]):
        if ran == "nothing":
            arrays.load(drawn(draw, counts), BUCKETS.of(sum(counts), len(counts)))
        else:
            arrived(arrays, drawn(draw, counts), chosen)
        if ran == "all of it":
            arrays.leave(chosen)
        arrived(arrays, drawn(draw, counts), chosen)
        arrays.leave(chosen)
        arrays.sent()


def test_steps_behind_some_that_were_only_rehearsed_arrive() -> None:
    draw = np.random.default_rng(4)
    arrays = StepArrays(POOLS, BUCKETS.largest, CONTEXT, DEVICE)
    chosen = torch.zeros(BUCKETS.largest.seqs, dtype=torch.int32, device=DEVICE)
    for _ in range(STEPS + 1):
        arrays.load(drawn(draw, [1]), BUCKETS.of(1, 1))
        arrays.sent()
    arrays.settle()
    arrived(arrays, drawn(draw, [3, 1]), chosen)


def test_a_step_without_pools_arrives() -> None:
    arrays = StepArrays((), Bucket(16, 8, False), CONTEXT, DEVICE)
    batch = replace(drawn(np.random.default_rng(3), [2, 1]), tables=())
    arrays.load(batch, Bucket(16, 8, False))
    arrays.arrive(Bucket(16, 8, False), torch.arange(8, dtype=torch.int32, device=DEVICE))
    assert arrays.there(Bucket(16, 8, False))[0].positions[:3].tolist() == batch.positions.tolist()


def test_both_compile() -> None:
    """In one form each, whatever the sizes."""
    ints: dict[str, str] = dict.fromkeys(("stride", "front", "ids", "late", "tokens", "readers"), "i32")
    tensors: dict[str, str] = dict.fromkeys(("block", "posted", "turns", "chosen"), "*i32")
    module = "irloom.backends.cuda.kernels.exchange"
    made = compiled(module, "_arrive", tensors | ints, {"WORDS": 128, "TABLE": 4, "CHAIN": True}, num_warps=4)
    assert "ld.global.cg" in made["ptx"]
    assert made["ptx"].rindex("st.global") < made["ptx"].rindex("fence.acq_rel.gpu")
    told: dict[str, str] = dict.fromkeys(("told", "turns", "chosen"), "*i32")
    told |= {"stride": "i32", "count": "i32"}
    compiled(module, "_leave", told, {"STEPS": STEPS, "WORDS": 128, "CHAIN": True}, num_warps=4)
