"""Up to sixteen rows on tensor cores, with what follows, against the ops in f64."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels.few import ROWS, few_product, sheaves
from irloom.backends.cuda.kernels.few_kernel import Sheaf
from irloom.backends.cuda.kernels.form import Form
from irloom.backends.cuda.quantized import Quantized

from .cross import compiled
from .product_cases import BLOCK, ROW, TENSOR, TOKEN_GROUP, Case, close

KINDS = {
    "plain": (None, None),
    "rows": (ROW, ROW),
    "a whole weight": (TENSOR, ROW),
    "blocks": (BLOCK, TOKEN_GROUP),
    "blocks by rows": (BLOCK, ROW),
}
FORMS = Form(), Form(act="gelu_tanh", scale=0.5), Form(act="silu", gated=True), Form(act="relu", softcap=2.0)


def run(case: Case, sheaf: Sheaf) -> None:
    (x, weight, *rest), expected = case.operands()
    bias, residual, norm = (t if isinstance(t, torch.Tensor) else None for t in rest)
    assert x is not None and weight is not None
    out = case.poisoned()
    assert sheaves(out, x, weight, case.form)
    few_product(out, x, weight, bias, residual, norm, case.form, sheaf)
    close(out, expected, case.dtype)


@settings(max_examples=3, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_that_of_its_body(kind: str, data: st.DataObject) -> None:
    weight, x = KINDS[kind]
    grouped = weight is not None and weight.group
    k = data.draw(st.sampled_from((128, 384) if grouped else (16, 200)))
    case = Case(
        rows=data.draw(st.integers(1, ROWS)), n=data.draw(st.sampled_from((6, 36))), k=k, weight=weight,
        x=x, form=data.draw(st.sampled_from(FORMS)), bias=data.draw(st.booleans()),
        residual=data.draw(st.booleans()), dtype=data.draw(st.sampled_from((torch.bfloat16, torch.float16))),
        seed=data.draw(st.integers(0, 99)),
    )  # fmt: skip
    run(case, Sheaf(data.draw(st.sampled_from((1, 2))), 2, data.draw(st.sampled_from((1, 2)))))


@pytest.mark.parametrize("weighted", [False, True, torch.float32])
def test_a_norm_is_made_on_the_way(weighted: bool | torch.dtype) -> None:
    run(Case(11, 20, 200, form=Form(eps=1e-5, act="silu", gated=True), norm=weighted), Sheaf(1, 2, 2))


def test_padding_rows_spoil_no_others() -> None:
    case = Case(5, 24, 64, form=Form(eps=1e-5))
    (x, weight, *_), expected = case.operands()
    assert isinstance(x, torch.Tensor) and weight is not None
    x[3:], out = float("nan"), case.poisoned()
    few_product(out, x, weight, None, None, None, case.form, Sheaf(1, 2, 2))
    close(out[:3], expected[:3], case.dtype)


def test_what_takes_other_kernels() -> None:
    x, w = torch.randn(3, 64, dtype=torch.bfloat16), torch.randn(8, 64, dtype=torch.bfloat16)
    assert sheaves(x, x, w, Form())
    assert not sheaves(x, x.float(), w.float(), Form())
    assert sheaves(x.half(), x.half(), w.half(), Form())
    assert not sheaves(x.half(), x.half(), w.half(), Form(eps=1e-5)), "normed, they may not fit in between"
    assert not sheaves(x, x, w, Form(quant=ROW))
    assert not sheaves(x, torch.randn(17, 64, dtype=torch.bfloat16), w, Form())
    rounded = Quantized(w.to(torch.float8_e4m3fn), torch.ones(8, 1), None, ROW)
    assert sheaves(x, x, rounded, Form(quant=ROW)) and not sheaves(x, x, rounded, Form())


POINTERS = {"out": "*bf16", **dict.fromkeys(("x", "words"), "*i32")}
NUMBERS = {
    **dict.fromkeys(("out_row", "x_row"), "i32:16"), **dict.fromkeys(("eps", "scale", "cap"), "fp32"),
    **dict.fromkeys(("T", "residual_row", "x_scale_row", "x_scale_group"), "i32"),
    **dict.fromkeys(("scale_row", "scale_group", "share"), "i32"),
}  # fmt: skip
SHAPE = {
    "bias": None, "norm": None, "residual": None, "N": 4096, "K": 4096, "NORM": False, "GATED": False,
    "ACT": None, "CAPPED": False, "GROUP": 0, "TILES": 1, "SETS": 2, "WARPS": 8, "DEPTH": 4, "CHAIN": True,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "per", "products"), [("bf16", 2, 4), ("f8e4m3", 4, 8)])
def test_operands_come_straight_from_memory(kind: str, per: int, products: int) -> None:
    """16 bytes at a time, before waiting, and nothing lies in shared memory before the sums do.

    The tensor cores see rows and tokens by where a thread is: eight rows by four threads of each warp.
    """
    scales = dict.fromkeys(("scales", "x_scales"), "*fp32" if per == 4 else None)
    made = compiled(
        "irloom.backends.cuda.kernels.few_kernel", "few_kernel",
        POINTERS | NUMBERS | {n: t for n, t in scales.items() if t}, SHAPE | {"KIND": kind, "PER": per}
        | {n: None for n, t in scales.items() if not t}, num_warps=8, num_stages=1,
    )  # fmt: skip
    early, late = made["ptx"].split("griddepcontrol.wait")
    assert early.count(".v4.b32") == 4 * 4
    loop = late[: late.index("shared")]
    assert loop.count("mma.sync.aligned.m16n8k16") == 4 * products
    assert "bar.sync" not in loop
    multiplied = [line for line in made["ttgir"].splitlines() if "mma.sync" in line]
    layouts = {name for line in multiplied for name in re.findall(r"xi32, (#\w+)>", line)}
    assert len(layouts) == 1, "operands would have to move"
    threads = re.search(rf"^{layouts.pop()} = .*", made["ttgir"], re.MULTILINE)
    assert threads is not None
    assert "threadsPerWarp = [8, 4], warpsPerCTA = [8, 1], order = [1, 0]" in threads[0]
