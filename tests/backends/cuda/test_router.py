"""The router's kernel against the op's body: what it chooses, and the weights of that."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels.norm_parts import has_parts
from irloom.backends.cuda.kernels.norm_route import norm_route
from irloom.backends.cuda.kernels.router import route
from irloom.backends.cuda.step import Step
from irloom.backends.cuda.work import Workspace
from irloom.ir import ops
from irloom.ir.ops.router import SCORES

from .cross import compiled, spilled
from .device import DEVICE
from .no_gpu import rehearsal

SEEDED = torch.Generator()


def routed(logits: torch.Tensor, bias: torch.Tensor | None, spare: int, k: int, **attrs: Any) -> None:
    """The kernel chooses as the body does; rows of nobody go nowhere."""
    tokens, real = len(logits), len(logits) - spare
    weights = torch.full((tokens, k), torch.nan, dtype=logits.dtype, device=DEVICE)
    index = torch.full_like(weights, 99, dtype=torch.int32)
    ints = torch.zeros(tokens, dtype=torch.int32, device=DEVICE)
    starts = torch.tensor([0, real], dtype=torch.int32, device=DEVICE)
    route(weights, index, logits, bias, k=k, **attrs, step=Step(ints, ints, ints, starts, ints[:1], {}))
    w, i = ops.route.reference(logits, bias, k=k, **attrs)
    assert torch.equal(index[:real], i[:real])
    torch.testing.assert_close(
        weights[:real], w[:real], rtol=1e-2 if w.dtype == torch.bfloat16 else 1e-5, atol=1e-6
    )
    assert (index[real:] == -1).all() and (weights[real:] == 0).all()


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(2, 9), st.sampled_from(sorted(SCORES)), st.booleans(),
    st.booleans(), st.booleans(), st.data(),
)  # fmt: skip
def test_any_router(
    tokens: int, groups: int, per: int, score: str, by_logits: bool, normalize: bool, biased: bool,
    data: st.DataObject,
) -> None:  # fmt: skip
    top_groups = data.draw(st.integers(1, groups))
    best = data.draw(st.integers(1, min(2, per)))
    k = data.draw(st.integers(1, per * top_groups))
    SEEDED.manual_seed(tokens * per)
    logits = (torch.randn(tokens + 1, groups * per + 3, generator=SEEDED) * 3).to(DEVICE)[
        :-1, :-3
    ]  # rows with gaps
    bias = torch.randn(groups * per, generator=SEEDED).to(DEVICE) if biased else None
    routed(
        logits, bias, spare=tokens // 2, k=k, score=score, by_logits=by_logits, groups=groups,
        top_groups=top_groups, best=best, normalize=normalize, scale=2.5,
    )  # fmt: skip


@pytest.mark.parametrize(("groups", "count", "k"), [(1, 6, 2), (1, 8, 1), (4, 20, 3)])
def test_in_a_crowd_the_largest_are_found_one_by_one(
    monkeypatch: pytest.MonkeyPatch, groups: int, count: int, k: int
) -> None:
    monkeypatch.setattr("irloom.backends.cuda.kernels.router.CROWD", 1)
    SEEDED.manual_seed(count)
    logits = torch.randn(3, count, generator=SEEDED).to(DEVICE)
    grouped = {"groups": groups, "top_groups": max(1, groups // 2), "best": 2} if groups > 1 else {}
    routed(logits, None, spare=1, k=k, normalize=True, **grouped)


def test_128_experts_in_bf16():
    SEEDED.manual_seed(0)
    logits = (
        torch.stack([torch.randperm(128, generator=SEEDED) for _ in range(3)]).to(DEVICE, torch.bfloat16) / 16
    )
    routed(logits, None, spare=1, k=8, normalize=True)


def test_of_equal_scores_the_smaller_number_comes_first():
    logits = torch.tensor([[0.5, 2.0, 2.0, -1.0, 2.0]], device=DEVICE)
    weights, index = torch.empty(1, 3, device=DEVICE), torch.empty(1, 3, dtype=torch.int32, device=DEVICE)
    route(weights, index, logits, k=3)
    assert index.tolist() == [[1, 2, 4]]


def test_nan_stays_in_its_row():
    logits = torch.randn(2, 6, device=DEVICE)
    logits[0] = torch.nan
    weights, index = torch.empty(2, 2, device=DEVICE), torch.empty(2, 2, dtype=torch.int32, device=DEVICE)
    route(weights, index, logits, k=2)
    assert weights[0].isnan().all() and weights[1].isfinite().all()
    assert ((index >= 0) & (index < 6)).all()


@pytest.mark.parametrize(("h", "count"), [(24, 6), (40, 6), (24, 150)])
@pytest.mark.parametrize("biased", [False, True])
def test_with_its_norm_and_product(h: int, count: int, biased: bool):
    SEEDED.manual_seed(h)
    dims = (3, h), (h,), (count, h), (count,), (count,)
    made = [torch.randn(*d, generator=SEEDED).to(DEVICE) for d in dims]
    x, norm, router, shift, bias = made if biased else [*made[:3], None, None]
    normed, weights = (
        torch.full((3, h), torch.nan, device=DEVICE),
        torch.full((3, 2), torch.nan, device=DEVICE),
    )
    index = torch.full((3, 2), 99, dtype=torch.int32, device=DEVICE)
    ints = torch.zeros(3, dtype=torch.int32, device=DEVICE)
    step = Step(ints, ints, ints, torch.tensor([0, 2], dtype=torch.int32, device=DEVICE), ints[:1], {})
    work = Workspace(DEVICE)
    attrs = {"k": 2, "score": "sigmoid", "normalize": True}
    norm_route(
        normed, weights, index, x, norm, router, shift, bias, eps=1e-5, work=work, step=step, **attrs
    )  # fmt: skip
    rows = ops.rms_norm.reference(x, norm, eps=1e-5)
    expected = ops.route.reference(torch.nn.functional.linear(rows, router, shift), bias, **attrs)
    torch.testing.assert_close(normed, rows, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights[:2], expected[0][:2], rtol=1e-5, atol=1e-6)
    assert torch.equal(index[:2], expected[1][:2]) and index[2].tolist() == [-1, -1]
    assert not work.counters.any()


@pytest.mark.parametrize("groups", [1, 8])
def test_it_compiles(groups: int):
    signature = {"weights": "*bf16", "index": "*i32", "logits": "*bf16", "bias": "*fp32", "real": "*i32",
                 "stride": "i32", "scale": "fp32"}  # fmt: skip
    given = {"GROUPS": groups, "PER": 256 // groups, "K": 8, "SCORE": "sigmoid", "BY_LOGITS": False, "TOP": 4,
             "BEST": 2, "NORMALIZE": True, "CHAIN": True}  # fmt: skip
    made = compiled("irloom.backends.cuda.kernels.router", "_route", signature, given, num_warps=1)
    assert ".local" not in made["ptx"]


def test_parts_of_logits_come_from_tensor_cores():
    signature = {
        "parts": "*fp32", "squares": "*fp32", "x": "*bf16", "norm": "*bf16", "router": "*bf16",
        "rows": "i32", "stride": "i32:16",
    }  # fmt: skip
    sizes = {"H": 2048, "E": 128, "BT": 64, "BE": 64, "BK": 64, "CHAIN": True}
    made = compiled("irloom.backends.cuda.kernels.norm_parts", "_logit_parts", signature, sizes, num_warps=4)
    assert "wgmma.mma_async" in made["ptx"] and spilled(made["ptx"]) == 0


PARTS = """
from irloom.backends.cuda.ahead import rehearsed
from irloom.backends.cuda.kernels.norm_parts import norm_route_parts
from irloom.backends.cuda.work import Workspace

def run(rows):
    x, router = (torch.zeros(n, 512, dtype=torch.bfloat16) for n in (rows, 16))
    weights, index = torch.zeros(rows, 2), torch.zeros(rows, 2, dtype=torch.int32)
    norm_route_parts(
        x, weights, index, x, x[0], router, None, None, eps=1e-5, work=Workspace("cpu"), k=2, score="softmax",
        normalize=True,
    )

jobs = rehearsed(lambda: [run(rows) for rows in (1, 16, 24, 32)])
print(json.dumps([job.fn.__name__ for job in jobs]))
"""


def test_steps_of_a_height_launch_the_same_kernels(tmp_path: Path):
    """Whatever their number of rows: two heights here."""
    assert sorted(rehearsal(PARTS, tmp_path)) == ["_logit_parts", "_logit_parts", "_sum_and_choose"]


def collecting(count: int, groups: int) -> str:
    """The PTX of a kernel that chooses among ``count`` experts of so many ``groups``; nothing is spilled."""
    signature = {
        "normed": "*bf16", "weights": "*bf16", "index": "*i32", "words": "*i32", "x": "*bf16",
        "norm": "*bf16", "router": "*bf16", "stride": "i32:16", "out_stride": "i32:16", "eps": "fp32",
        "scale": "fp32",
    }  # fmt: skip
    given = {
        "router_bias": None, "bias": None, "real": None, "H": 2048, "E": count, "EACH": 4, "BK": 2048,
        "GROUPS": groups, "PER": count // groups, "K": 8, "SCORE": "softmax", "BY_LOGITS": False,
        "TOP": min(groups, 3), "BEST": min(groups, 2), "NORMALIZE": True, "WARPS": 4, "CHAIN": True,
    }  # fmt: skip
    made = compiled("irloom.backends.cuda.kernels.norm_route", "_norm_route", signature, given, num_warps=4)
    assert spilled(made["ptx"]) == 0
    return made["ptx"]


@pytest.mark.parametrize(("count", "groups"), [(128, 1), (256, 1), (160, 8)])
def test_each_logit_is_collected_by_one_thread(count: int, groups: int):
    """Threads that looked at the same word could see it, and see it gone."""
    room = 1 << (count - 1).bit_length()
    assert collecting(count, groups).count("ld.relaxed.gpu") == 2 * room // 128, "before the loop and in it"


@pytest.mark.parametrize("count", [8, 64])
def test_logits_that_several_threads_collect_are_gone_when_all_have_them(count: int):
    """However often the compiler has words read again, it is in front of a barrier, and zeros behind it."""
    _, behind = collecting(count, 1).rsplit("ld.relaxed.gpu", 1)
    assert 0 < behind.index("bar.sync") < behind.index("st.global")


@pytest.mark.parametrize(("tokens", "h", "count"), [(40, 40, 6), (70, 2100, 70)])
@pytest.mark.parametrize("biased", [False, True])
def test_some_hundred_tokens(tokens: int, h: int, count: int, biased: bool):
    """In bf16: of logits that are not told apart by their rounding either one may come first."""
    SEEDED.manual_seed(h)
    dims = (tokens + 1, h + 8), (h,), (count, h)
    x, norm, router = (torch.randn(*d, generator=SEEDED).to(DEVICE, torch.bfloat16) for d in dims)
    x, router = x[1:, :-8], router * h**-0.5
    shift = torch.randn(count, generator=SEEDED).to(DEVICE) if biased else None
    normed, weights = torch.full_like(x, torch.nan), torch.full((tokens, 3), torch.nan, device=DEVICE)
    index = torch.full((tokens, 3), 99, dtype=torch.int32, device=DEVICE)
    ints = torch.zeros(tokens, dtype=torch.int32, device=DEVICE)
    real = tokens - 4
    step = Step(ints, ints, ints, torch.tensor([0, real], dtype=torch.int32, device=DEVICE), ints[:1], {})
    assert has_parts(x, router)
    norm_route(
        normed, weights, index, x, norm, router, shift, None, eps=1e-5, work=Workspace(DEVICE), step=step, k=3
    )  # fmt: skip
    rows = ops.rms_norm.reference(x.double(), norm.double(), eps=1e-5)
    logits = torch.nn.functional.linear(rows, router.double(), None if shift is None else shift.double())
    torch.testing.assert_close(normed.double(), rows, rtol=1e-2, atol=1e-2)
    shares = logits.softmax(-1)[:real]
    made, best = shares.gather(1, index[:real].long()), shares.topk(3).values
    torch.testing.assert_close(made, best, rtol=3e-2, atol=1e-3)
    torch.testing.assert_close(weights[:real].double(), made, rtol=3e-2, atol=1e-3)
    assert (index[real:] == -1).all() and (weights[real:] == 0).all()


def test_a_router_in_f32_reads_rows_that_nothing_rounds():
    SEEDED.manual_seed(0)
    tokens = 20
    x, norm, router = (torch.randn(*d, generator=SEEDED).to(DEVICE) for d in ((tokens, 16), (16,), (6, 16)))
    x, norm = x.bfloat16(), norm.bfloat16()
    normed, weights = torch.empty_like(x), torch.empty(tokens, 2, device=DEVICE)
    index = torch.empty(tokens, 2, dtype=torch.int32, device=DEVICE)
    norm_route(
        normed, weights, index, x, norm, router, None, None, eps=1e-5, k=2, work=Workspace(DEVICE)
    )  # fmt: skip
    rows = ops.rms_norm.reference(x.float(), norm.float(), eps=1e-5)
    expected = ops.route.reference(rows @ router.T, k=2)
    torch.testing.assert_close(normed.float(), rows, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(weights, expected[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(index, expected[1])
