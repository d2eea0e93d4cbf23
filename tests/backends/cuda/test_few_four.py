"""Products of a few rows by four-bit weights in fragments, against their bodies in f64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.fragments import blocks_of
from irloom.backends.cuda.kernels.few_four import Few, few_four_product, laps_of
from irloom.backends.cuda.kernels.form import Form
from irloom.backends.cuda.quantized import Quantized
from irloom.backends.cuda.work import Workspace
from irloom.ir.elem import ELEMS, Quant

from .cross import compiled, spilled
from .device import DEVICE
from .product_cases import Case, close, in_fragments, rounded

I4, U4, BF16, F16 = ELEMS["i4"], ELEMS["u4"], ELEMS["bf16"], ELEMS["f16"]
KINDS = {
    "groups": Quant("i4g128", I4, 128, BF16),
    "small groups": Quant("i4g32", I4, 32, F16),
    "zeros": Quant("u4g64", U4, 64, F16, zero=U4),
    "zeros that are no integers": Quant("u4g64", U4, 64, BF16, zero=F16),
    "rows": Quant("i4", I4, 0, BF16),
}
FEWS = (Few(4, 2, 2), Few(8, 2, 2, 8), Few(2, 4, 3), Few(1, 2, 4))


def run(case: Case, few: Few) -> None:
    (x, weight, bias, residual, norm), expected = case.operands()
    out = case.poisoned()
    assert isinstance(x, torch.Tensor)
    assert not isinstance(bias, Quantized)
    assert not isinstance(residual, Quantized) and not isinstance(norm, Quantized)
    few_four_product(out, x, in_fragments(weight), bias, residual, norm, case.form, Workspace(DEVICE), few)
    close(out, expected, case.dtype)
    rest = out._base
    assert rest is None or rest[:, case.n :].isnan().all()


@settings(max_examples=5, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_that_of_its_body(kind: str, data: st.DataObject) -> None:
    gated, norm = data.draw(st.booleans()), data.draw(st.booleans())
    form = Form(
        eps=1e-5 if norm else None, act="silu" if gated else None, gated=gated, scale=0.7,
        softcap=data.draw(st.sampled_from((None, 3.0))),
    )  # fmt: skip
    quant = KINDS[kind]
    case = Case(
        rows=data.draw(st.integers(1, 8)), n=16 * data.draw(st.integers(1, 5)),
        k=(quant.group or 96) * data.draw(st.integers(1, 11)), weight=quant, form=form, norm=norm,
        bias=data.draw(st.booleans()), residual=data.draw(st.booleans()),
        dtype=data.draw(st.sampled_from((torch.bfloat16, torch.float16))), seed=data.draw(st.integers(0, 99)),
    )  # fmt: skip
    run(case, data.draw(st.sampled_from(FEWS)))


def test_a_row_that_is_no_number_stays_none_and_an_entry_beyond_all_others_hides_none_of_them() -> None:
    case = Case(rows=2, n=16, k=512, weight=KINDS["groups"], seed=3)
    (x, weight, *_), _ = case.operands()
    assert isinstance(x, torch.Tensor) and isinstance(weight, Quantized)
    x[0, 7], x[1, 7] = float("nan"), 200.0
    exact = weight.dequantized().double().cpu()
    out = case.poisoned()
    few_four_product(out, x, in_fragments(weight), None, None, None, case.form, Workspace(DEVICE), FEWS[0])
    assert out[0].isnan().all()
    close(out[1], x[1].double().cpu() @ exact.T, case.dtype)


def test_entries_of_a_row_stay_what_they_are_unless_they_are_tiny_beside_the_largest() -> None:
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(0)).bfloat16().to(DEVICE)
    weight, exact = rounded(-8 * torch.eye(512), Quant("i4g128", I4, 128, F16))
    assert torch.equal(exact, -8 * torch.eye(512).double())
    out = torch.full_like(x, float("nan"))
    few_four_product(out, x, in_fragments(weight), None, None, None, Form(), Workspace(DEVICE), FEWS[3])
    most, error = x.abs().amax(1, keepdim=True), (out / -8 - x).abs()
    assert (error[x.abs() >= most / 64] == 0).all()
    assert (error <= most * 2.0**-14).all() and error.any()


def test_a_row_of_f16_may_be_more_than_that_holds_before_it_is_divided_by_its_size() -> None:
    case = Case(2, 16, 512, KINDS["groups"], form=Form(eps=1e-5), norm=True, dtype=torch.float16)
    (x, weight, _, _, norm), _ = case.operands()
    assert isinstance(x, torch.Tensor) and isinstance(norm, torch.Tensor) and isinstance(weight, Quantized)
    x[:, 7], norm[7] = 3000.0, 30.0
    h = x.double()
    h = (h * (h.square().mean(1, keepdim=True) + 1e-5).rsqrt() * norm.double()).cpu()
    out = case.poisoned()
    few_four_product(out, x, in_fragments(weight), None, None, norm, case.form, Workspace(DEVICE), FEWS[0])
    close(out, h @ weight.dequantized().double().cpu().T, case.dtype)


def test_a_long_row_is_read_in_laps() -> None:
    case = Case(rows=2, n=32, k=32 * 4 * 19, weight=KINDS["small groups"], residual=True, seed=1)
    assert laps_of(19, 1) == (2, 10)
    run(case, Few(1, 2, 2))


def made(few: Few, n: int, k: int, span: int, sets: int) -> dict[str, Any]:
    laps, steps = laps_of(blocks_of(k, span), few.slices)
    return compiled(
        "irloom.backends.cuda.kernels.few_four_kernel",
        "few_four_kernel",
        {
            "out": "*bf16", "digits": "*i8", "beside": "*fp32", "pairs": "*i8", "scales": "*i64",
            **dict.fromkeys(("T", "out_row", "residual_row"), "i32"),
            **dict.fromkeys(("eps", "scale", "cap"), "fp32"),
        },
        {
            "zeros": None, "bias": None, "residual": None, "N": n, "K": k, "SPAN": span, "SIGNED": 1,
            "SCALE": "tl.bfloat16", "ZERO": None, "NORM": True, "GATED": False, "ACT": None, "CAPPED": False,
            "SETS": sets, "SLICES": few.slices, "LAPS": laps, "STEPS": steps, "STRIPS": few.strips,
            "DEPTH": min(few.depth, 2 * steps), "CHAIN": True,
        },
        num_warps=few.warps, num_stages=1, maxnreg=few.registers,
    )  # fmt: skip


def test_weights_are_read_before_waiting_and_stay_in_the_registers_they_come_to() -> None:
    kernel = made(Few(8, 2, 2, 8, 128), 6144, 4096, 128, 1)
    early, late = kernel["ptx"].split("griddepcontrol.wait")
    assert early.count("ld.global.L1::evict_first.L2::cache_hint.v4.b32") == 16
    assert late.count("ld.global.v4.b32") == 8, "digits come as tensor cores take them"
    assert late.count("mma.sync.aligned.m16n8k32") == 32, "a row's two digits are columns beside each other"
    assert kernel["shared"] <= 4096, "what is shared are sums of slices"
    assert spilled(kernel["ptx"]) == 0


def test_laps_of_a_long_row_carry_nothing_but_sums() -> None:
    kernel = made(Few(8, 1, 4, 8, 255), 4096, 28672, 32, 1)
    assert kernel["ptx"].count("mma.sync.aligned.m16n8k32") == 2 * 14 * 4, "the first lap, and all others"
    assert kernel["shared"] <= 4096
    assert spilled(kernel["ptx"]) <= 128, "a weight carried in bytes would be thousands"
