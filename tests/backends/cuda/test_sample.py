"""The sampler of a graph chooses what the runtime's sampler chooses, row by row."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels import sample as kernels
from irloom.backends.cuda.work import Workspace
from irloom.runtime.core import BROKEN, DRAW, SamplingRow, draw_of
from irloom.runtime.request import SamplingParams
from irloom.runtime.sampler import sample, uniforms

from .cross import compiled
from .device import DEVICE

params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0, 0.3, 1.7]),
    top_k=st.sampled_from([0, 0, 1, 3, 20, 700, 100_000]),
    top_p=st.sampled_from([1.0, 1.0, 0.01, 0.5, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.4, 1.0]),
)
rows = st.builds(SamplingRow, params, seed=st.integers(-(2**63), 2**64 - 1), position=st.integers(0, 100_000))


def told(asked: Sequence[SamplingRow | None]) -> torch.Tensor:
    """What ``runtime.batch`` says of rows, in words."""
    draws = np.array([draw_of(row) for row in asked], DRAW)
    return torch.from_numpy(draws.view(np.int32).reshape(len(asked), -1)).to(DEVICE)


def chosen(logits: torch.Tensor, asked: Sequence[SamplingRow | None]) -> list[int]:
    out = torch.full([len(asked)], -7, dtype=torch.int32, device=DEVICE)
    kernels.sample(out, logits.to(DEVICE), told(asked), work=Workspace(DEVICE))
    return out.tolist()


def expected(logits: torch.Tensor, asked: Sequence[SamplingRow | None]) -> list[int]:
    return [
        0 if row is None else sample(x[None], [row])[0].token for x, row in zip(logits, asked, strict=True)
    ]


def scores(shape: tuple[int, ...], spread: float, seed: int = 0, apart: int = 5) -> torch.Tensor:
    """Logits in rows that lie apart, with NaN between them."""
    *some, vocab = shape
    whole = torch.full((*some, vocab + apart), torch.nan)
    whole[..., :vocab] = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread
    return whole[..., :vocab]


@given(
    st.lists(st.one_of(st.none(), rows, rows), min_size=1, max_size=5),
    st.sampled_from([1, 3, 256, 300, 700]),
    st.sampled_from([0.1, 1.0, 5.0]),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None, derandomize=True)  # a draw may fall on the edge of a token
def test_it_chooses_what_the_runtime_chooses(asked, vocab, spread, seed):
    logits = scores((len(asked), vocab), spread, seed)
    assert chosen(logits, asked) == expected(logits, asked)


def test_logits_of_fewer_bits_and_ties():
    """Equal scores stay or go together; a greedy row takes the first of them."""
    logits = scores((6, 520), 1.0).bfloat16()
    logits[:3] = logits[:3].round()
    asked = [
        SamplingRow(SamplingParams(temperature=0), 0, 0),
        *(SamplingRow(SamplingParams(top_k=4, seed=i), i, 5) for i in range(2)),
        *(SamplingRow(SamplingParams(top_p=0.7, temperature=0.8), i, 5) for i in range(3)),
    ]
    assert chosen(logits, asked) == expected(logits, asked)
    assert chosen(logits, asked)[0] == int(logits[0].float().numpy().argmax())


def test_more_scores_than_are_gathered():
    """The cuts of a flat row are looked for in the row itself."""
    logits = scores((4, 9000), 0.05)
    cuts = [{"top_p": 0.9}, {"top_k": 8000}, {"top_k": 8000, "top_p": 0.8}, {"min_p": 0.8, "top_p": 0.95}]
    asked = [SamplingRow(SamplingParams(**cut), 7, i) for i, cut in enumerate(cuts)]
    assert chosen(logits, asked) == expected(logits, asked)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_broken_logits_break_their_row_alone(bad):
    logits = scores((6, 600), 1.0)
    logits[1, 599] = logits[3, 0] = bad
    logits[4] = -torch.inf
    ways = [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_p=0.5)]
    asked = [SamplingRow(ways[i % 3], i, i) for i in range(6)]
    fine = [0, 2, 5]
    told = chosen(logits, asked)
    assert [told[i] for i in fine] == expected(logits[fine], [asked[i] for i in fine])
    assert [told[i] for i in (1, 3, 4)] == [BROKEN] * 3


def test_random_numbers_are_the_runtime_s():
    """Logits that are all the same turn a number into the token of its place."""
    seeds, positions = [0, 1, -1, 2**63, 2**64 - 1, 12345678901234567], [0, 1, 7, 99, 2**31 - 1, 4]
    rows = zip(seeds, positions, strict=True)
    asked = [SamplingRow(SamplingParams(), seed, position) for seed, position in rows]
    found = chosen(torch.zeros(6, 5000), asked)
    assert found == (uniforms(seeds, positions) * 5000).astype(int).tolist()


@pytest.mark.parametrize(("name", "kernel", "warps"), [
    ("sample", "_survey", 4), ("bounds", "narrow", 8), ("bounds", "bounds", 16), ("sample", "_choose_cut", 8),
])  # fmt: skip
def test_they_compile_without_spills(name, kernel, warps):
    """What goes over all logits reads sixteen bytes at a time."""
    types = {"stride": "i32:16", "vocab": "i32:16", "width": "i32:16", "chunks": "i32", "logits": "*bf16"}
    types |= dict.fromkeys(("best", "found", "scores", "near", "others"), "*fp32") | {"share": "*fp64"}
    types |= dict.fromkeys(("draws", "chosen", "tokens", "counts", "heads"), "*i32")
    types |= {"above": "*i64", "kept": "*i64"}
    constants = {"CHUNK": 256, "SPAN": 16, "WORDS": 8, "ALL": 512, "NONE": BROKEN, "CAP": 8192, "TILE": 1024}
    constants |= {"ONE": 2.0**45, "SAMPLE": 8192, "CHAIN": True}
    module = f"irloom.backends.cuda.kernels.{name}"
    takes = getattr(importlib.import_module(module), kernel).arg_names
    signature = {k: v for k, v in types.items() if k in takes}
    known = {k: v for k, v in constants.items() if k in takes}
    made = compiled(module, kernel, signature, known, num_warps=warps)
    assert made["shared"] < 100_000
    assert ".local" not in made["ptx"]
    if kernel in ("_survey", "narrow"):
        assert "v4" in made["ptx"]
