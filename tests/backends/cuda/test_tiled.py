"""Our own product computes what the body of the op does, for weights of every kind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels.expand import expand
from irloom.backends.cuda.kernels.finish import finish
from irloom.backends.cuda.kernels.form import Form
from irloom.backends.cuda.kernels.tiled import Tile, tiled_product
from irloom.backends.cuda.quantized import Quantized
from irloom.backends.cuda.work import Workspace
from irloom.ir.elem import ELEMS, Quant

from .cross import compiled
from .device import DEVICE
from .product_cases import BLOCK, ROW, TENSOR, TOKEN_GROUP, Case, close, rounded

I4, I8, BF16 = ELEMS["i4"], ELEMS["i8"], ELEMS["bf16"]
KINDS = {
    "plain": (None, None),
    "fp8 rows": (ROW, ROW),
    "fp8 tensor by rows": (TENSOR, ROW),
    "fp8 blocks": (BLOCK, TOKEN_GROUP),
    "fp8 weight": (ROW, None),
    "i8 rows": (Quant("i8row", I8, 0, BF16), None),
    "i8 groups": (Quant("i8g32", I8, 32, ELEMS["f16"]), None),
    "i4 groups": (Quant("i4g32", I4, 32, BF16), None),
    "u4 groups with zeros": (Quant("u4g64", ELEMS["u4"], 64, BF16, zero=ELEMS["u4"]), None),
}
FORMS = (
    Form(),
    Form(act="gelu_tanh", scale=0.5),
    Form(act="silu", gated=True),
    Form(act="relu", gated=True, softcap=2.0),
)


def run(case: Case, tile: Tile) -> None:
    (x, weight, bias, residual, _), expected = case.operands()
    work, out = Workspace(DEVICE), case.poisoned()
    assert x is not None and weight is not None
    assert not isinstance(bias, Quantized) and not isinstance(residual, Quantized)
    tiled_product(out, x, weight, bias, residual, case.form, work, tile)
    close(out, expected, case.dtype)
    assert not work.counters.any(), "whoever comes last leaves zeros"


@settings(max_examples=4, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_that_of_its_body(kind: str, data: st.DataObject) -> None:
    weight, x = KINDS[kind]
    group = max((q.group for q in (weight, x) if q), default=0)
    k = group * data.draw(st.integers(1, 3)) if group else data.draw(st.sampled_from((16, 48, 72, 96)))
    case = Case(
        rows=data.draw(st.integers(1, 20)), n=data.draw(st.sampled_from((24, 136))), k=k, weight=weight, x=x,
        form=data.draw(st.sampled_from(FORMS)), bias=data.draw(st.booleans()),
        residual=data.draw(st.booleans()), dtype=data.draw(st.sampled_from((torch.bfloat16, torch.float16))),
        seed=data.draw(st.integers(0, 99)),
    )  # fmt: skip
    run(case, Tile(64, 16, 32, data.draw(st.sampled_from((1, 2, 5))), 4, 2))


def test_programs_that_share_a_sum_give_the_same_every_time() -> None:
    case = Case(18, 40, 160)
    (x, weight, *_), _ = case.operands()
    work, outs = Workspace(DEVICE), [case.poisoned() for _ in range(3)]
    assert x is not None and weight is not None
    for out in outs:
        tiled_product(out, x, weight, None, None, Form(), work, Tile(64, 16, 32, 4))
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


def test_padding_rows_spoil_no_others() -> None:
    case = Case(20, 40, 64)
    (x, weight, *_), expected = case.operands()
    assert isinstance(x, torch.Tensor) and weight is not None
    x[17:] = float("nan")
    out = case.poisoned()
    tiled_product(out, x, weight, None, None, Form(), Workspace(DEVICE), Tile(64, 16, 32))
    close(out[:17], expected[:17], case.dtype)


@settings(max_examples=6, deadline=None)
@given(
    kind=st.sampled_from([quant for quant, _ in KINDS.values() if quant]), first=st.integers(0, 30),
    groups=st.integers(1, 3), rows=st.integers(1, 9),
)  # fmt: skip
def test_a_quantized_matrix_is_made_plain_some_rows_at_a_time(
    kind: Quant, first: int, groups: int, rows: int
) -> None:
    k = (kind.group or 40) * groups
    w = torch.randn(40, k, generator=torch.Generator().manual_seed(groups))
    given, exact = rounded(w, kind)
    out = torch.full((rows, k), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    expand(out, given, first)
    close(out, exact[first : first + rows], torch.bfloat16, 1.0)


@settings(max_examples=8, deadline=None)
@given(form=st.sampled_from(FORMS), bias=st.booleans(), residual=st.booleans(), rows=st.integers(1, 3))
def test_what_a_library_leaves_is_finished(form: Form, bias: bool, residual: bool, rows: int) -> None:
    case = Case(rows, 1100, 8, form=form, bias=bias, residual=residual, dtype=torch.float32)
    (x, weight, add, residual_rows, _), expected = case.operands()
    assert isinstance(x, torch.Tensor) and isinstance(weight, torch.Tensor)
    assert not isinstance(add, Quantized) and not isinstance(residual_rows, Quantized)
    out, f = case.poisoned(), form
    y = x @ weight.t()
    finish(out, y, add, residual_rows, act=f.act, gated=f.gated, scale=f.scale, softcap=f.softcap)
    close(out, expected, torch.float32, 64)


@pytest.mark.parametrize(
    ("x", "weight", "tensor_cores"),
    [
        ("*fp8e4nv", "*fp8e4nv", "k32"),
        pytest.param("*bf16", "*bf16", "k16", marks=pytest.mark.slow),
        pytest.param("*bf16", "*u8", "k16", marks=pytest.mark.slow),
    ],
)
def test_it_compiles_to_wide_loads_and_tensor_cores_of_hopper(x: str, weight: str, tensor_cores: str) -> None:
    wide = ("K", "N", "out_row", "x_row", "w_row", "residual_row")
    narrow = ("T", "x_scale_row", "x_scale_group", "w_scale_row", "w_scale_group", "rows", "split")
    fp8, four = x == "*fp8e4nv", weight == "*u8"
    made = compiled(
        "irloom.backends.cuda.kernels.tiled",
        "tiled_kernel",
        {
            "out": "*bf16", "x": x, "w": weight, "residual": "*bf16", "parts": "*fp32", "counters": "*i32",
            "scale": "fp32", "cap": "fp32", **dict.fromkeys(wide, "i32:16"), **dict.fromkeys(narrow, "i32"),
            **({"w_scales": "*fp32"} if fp8 or four else {}), **({"x_scales": "*fp32"} if fp8 else {}),
        },
        {
            "bias": None, "w_zeros": None, "GROUP": 128 if four else 0, "FOUR": 2 if four else 0,
            "GATED": False, "ACT": None, "CAPPED": False, "SPLIT": True, "EVEN": True, "BN": 128, "BT": 64,
            "BK": 128, "CHAIN": True, **({} if fp8 or four else {"w_scales": None}),
            **({} if fp8 else {"x_scales": None}),
        },
        num_warps=4, num_stages=3,
    )  # fmt: skip
    ptx = made["ptx"]
    assert f"wgmma.mma_async.sync.aligned.m64n64{tensor_cores}" in ptx
    assert "cp.async.cg.shared.global" in ptx, "16 bytes at a time, past the registers"
    assert "st.local" not in ptx and made["shared"] <= 227 << 10
