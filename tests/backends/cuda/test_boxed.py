"""Our own products that the copy engine feeds compute what the body of the op does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels.boxes import has_boxes
from irloom.backends.cuda.kernels.form import Form
from irloom.backends.cuda.kernels.streamed import Stream, streamed_product
from irloom.backends.cuda.kernels.wide import Wide, wide_product
from irloom.backends.cuda.quantized import Quantized
from irloom.backends.cuda.work import Workspace

from .cross import compiled, counts
from .device import DEVICE
from .product_cases import ROW, TENSOR, Case, close

KINDS = {"plain": (None, None), "fp8 rows": (ROW, ROW), "fp8 tensor by rows": (TENSOR, ROW)}
FORMS = (
    Form(),
    Form(act="gelu_tanh", scale=0.5),
    Form(act="silu", gated=True),
    Form(act="relu", gated=True, softcap=2.0),
)


def run(case: Case, tile: Stream | Wide) -> None:
    (x, weight, bias, residual, _), expected = case.operands()
    work, out = Workspace(DEVICE), case.poisoned()
    assert x is not None and weight is not None
    assert not isinstance(bias, Quantized) and not isinstance(residual, Quantized)
    if isinstance(tile, Wide):
        wide_product(out, x, weight, bias, residual, case.form, tile, programs=3)
    else:
        streamed_product(out, x, weight, bias, residual, case.form, work, tile)
    close(out, expected, case.dtype)
    assert not work.counters.any(), "whoever goes last leaves zeros"


@settings(max_examples=4, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", ["streamed", "wide"])
def test_a_product_is_that_of_its_body(tile: str, kind: str, data: st.DataObject) -> None:
    weight, x = KINDS[kind]
    case = Case(
        rows=data.draw(st.integers(1, 40)), n=data.draw(st.sampled_from((24, 136))),
        k=data.draw(st.sampled_from((16, 48, 96))), weight=weight, x=x,
        form=data.draw(st.sampled_from(FORMS)), bias=data.draw(st.booleans()),
        residual=data.draw(st.booleans()),
        dtype=data.draw(st.sampled_from((torch.bfloat16, torch.float16))), seed=data.draw(st.integers(0, 99)),
    )  # fmt: skip
    split, group = data.draw(st.sampled_from((1, 2, 4))), data.draw(st.sampled_from((1, 2)))
    run(case, Wide(64, 64, 32, 4, 2, group) if tile == "wide" else Stream(64, 16, 32, split, 4, 2))


@pytest.mark.parametrize("residual", [False, True])
def test_columns_are_finished_a_half_at_a_time(residual: bool) -> None:
    run(Case(20, 328, 64, bias=True, residual=residual), Wide(64, 256, 32, 8, 2, 8))


def test_programs_that_share_a_sum_give_the_same_every_time() -> None:
    case = Case(18, 40, 160)
    (x, weight, *_), _ = case.operands()
    work, outs = Workspace(DEVICE), [case.poisoned() for _ in range(3)]
    assert x is not None and weight is not None
    for out in outs:
        streamed_product(out, x, weight, None, None, Form(), work, Stream(64, 16, 32, 4))
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("tile", [Wide(64, 64, 32), Stream(64, 16, 32)], ids=["wide", "streamed"])
def test_padding_rows_spoil_no_others(tile: Wide | Stream) -> None:
    case = Case(20, 40, 64)
    (x, weight, *_), expected = case.operands()
    assert isinstance(x, torch.Tensor) and weight is not None
    x[17:] = float("nan")
    out = case.poisoned()
    if isinstance(tile, Wide):
        wide_product(out, x, weight, None, None, Form(), tile, programs=2)
    else:
        streamed_product(out, x, weight, None, None, Form(), Workspace(DEVICE), tile)
    close(out[:17], expected[:17], case.dtype)


def test_rows_that_begin_anywhere_have_no_boxes() -> None:
    wide = torch.zeros(4, 24, dtype=torch.bfloat16)
    assert has_boxes(wide, wide[:, 8:16]) and not has_boxes(wide[:, 1:9])
    assert not has_boxes(torch.zeros(4, 20, dtype=torch.bfloat16)) and not has_boxes(wide.t())


COMPILES: dict[str, tuple[str, dict[str, str], dict[str, Any], dict[str, int], str]] = {
    "wide": (
        "wide_kernel",
        {"out": "tensordesc<bf16[128, 128]>", "x": "tensordesc<bf16[128, 64]>",
         "w": "tensordesc<bf16[2, 128, 64]>", "matrix": "*bf16", "w_row": "i32:16"},
        {"GATED": True, "ACT": "silu", "FLAT": True, "BT": 128, "BN": 128, "BK": 64, "GROUP": 8,
         "AHEAD": 1, "residual": None},
        {"num_warps": 8, "num_stages": 4},
        "m64n256k16",
    ),
    "streamed": (
        "streamed_kernel",
        {
            "out": "*bf16", "x": "tensordesc<bf16[64, 64]>", "w": "tensordesc<bf16[128, 64]>",
            "residual": "*bf16", "parts": "*fp32", "counters": "*i32", "out_row": "i32:16",
        },
        {"GATED": False, "ACT": None, "SPLIT": 4, "BT": 64, "BN": 128, "BK": 64},
        {"num_warps": 4, "num_stages": 4},
        "m64n64k16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPILES)
def test_the_copy_engine_feeds_the_tensor_cores_of_hopper(name: str) -> None:
    kernel, types, constants, options, shape = COMPILES[name]
    made = compiled(
        f"irloom.backends.cuda.kernels.{name}",
        kernel,
        {
            "T": "i32", "N": "i32:16", "K": "i32:16", "residual_row": "i32:16", "x_scale_row": "i32",
            "w_scale_row": "i32", "scale": "fp32", "cap": "fp32", **types,
        },
        {
            "bias": None, "x_scales": None, "w_scales": None, "CAPPED": False, "CHAIN": True, **constants,
        },
        **options,
    )  # fmt: skip
    ptx = made["ptx"]
    assert f"wgmma.mma_async.sync.aligned.{shape}" in ptx
    assert "cp.async.bulk.tensor" in ptx
    assert ("cp.async.bulk.prefetch.L2" in ptx) == (name == "wide")
    assert "st.local" not in ptx and made["shared"] <= 227 << 10
    assert counts(ptx) == ([] if name == "wide" else ["acq_rel", "relaxed"])
