"""Products of some dozens of rows by four-bit weights in fragments, against their bodies in f64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels.expand_four import expand_four
from irloom.backends.cuda.kernels.form import Form
from irloom.backends.cuda.kernels.tiled_four import FourTile, tiled_four_product
from irloom.backends.cuda.quantized import Quantized
from irloom.backends.cuda.work import Workspace
from irloom.ir.elem import ELEMS, Quant

from .cross import compiled
from .device import DEVICE
from .product_cases import Case, close, in_fragments, rounded

I4, U4, BF16, F16 = ELEMS["i4"], ELEMS["u4"], ELEMS["bf16"], ELEMS["f16"]
KINDS = {
    "groups": Quant("i4g128", I4, 128, BF16),
    "small groups": Quant("i4g32", I4, 32, BF16),
    "zeros": Quant("u4g64", U4, 64, BF16, zero=U4),
}
FORMS = Form(), Form(act="gelu_tanh", scale=0.5), Form(act="silu", gated=True, softcap=2.0)


@settings(max_examples=4, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_that_of_its_body(kind: str, data: st.DataObject) -> None:
    quant = KINDS[kind]
    case = Case(
        rows=data.draw(st.integers(1, 20)), n=16 * data.draw(st.integers(1, 9)),
        k=quant.group * data.draw(st.integers(1, 9)), weight=quant, form=data.draw(st.sampled_from(FORMS)),
        bias=data.draw(st.booleans()), residual=data.draw(st.booleans()),
        dtype=data.draw(st.sampled_from((torch.bfloat16, torch.float16))), seed=data.draw(st.integers(0, 99)),
    )  # fmt: skip
    (x, weight, bias, residual, _), expected = case.operands()
    work, out = Workspace(DEVICE), case.poisoned()
    assert isinstance(x, torch.Tensor)
    assert not isinstance(bias, Quantized) and not isinstance(residual, Quantized)
    tile = FourTile(4, 16, 32, data.draw(st.sampled_from((1, 2, 5))), 4, 2)
    tiled_four_product(out, x, in_fragments(weight), bias, residual, case.form, work, tile)
    close(out, expected, case.dtype)
    assert not work.counters.any(), "whoever comes last leaves zeros"


@settings(max_examples=4, deadline=None)
@given(
    first=st.integers(0, 2),
    strips=st.integers(1, 3),
    groups=st.integers(1, 6),
    dtype=st.sampled_from((torch.bfloat16, torch.float32)),
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_is_made_plain_some_strips_at_a_time(
    kind: str, first: int, strips: int, groups: int, dtype: torch.dtype
) -> None:
    quant = KINDS[kind]
    w = torch.randn(80, quant.group * groups, generator=torch.Generator().manual_seed(groups))
    given, exact = rounded(w, quant)
    out = torch.full((16 * strips, w.shape[1]), float("nan"), dtype=dtype, device=DEVICE)
    expand_four(out, in_fragments(given), 16 * first)
    close(out, exact[16 * first : 16 * (first + strips)], dtype, 1.0)


@pytest.mark.parametrize("element", ["bf16", "fp16"])
@pytest.mark.parametrize("capability", [80, 90])
def test_entries_become_floats_on_every_gpu(capability: int, element: str) -> None:
    """In front of SM 9.0 bf16 is neither added nor multiplied by itself."""
    tensor = f"*{element}"
    ptx = compiled(
        "irloom.backends.cuda.kernels.tiled_four", "tiled_four_kernel",
        {
            "out": tensor, "x": tensor, "pairs": "*i8", "scales": "*i64", "zeros": "*i32", "counters": "*i32",
            **dict.fromkeys(("T", "out_row", "residual_row", "split"), "i32"), "x_row": "i32:16",
            **dict.fromkeys(("scale", "cap"), "fp32"),
        },
        {
            "bias": None, "residual": None, "parts": None, "N": 256, "BLOCKS": 2, "K": 512, "SPAN": 64,
            "SIGNED": 0, "SCALE": "tl.bfloat16", "ZERO": "tl.uint8", "GATED": False, "ACT": None,
            "CAPPED": False, "SPLIT": False, "STRIPS": 4, "BT": 16, "BK": 64, "CHAIN": False,
        },
        capability=capability, num_warps=4, num_stages=3,
    )["ptx"]  # fmt: skip
    assert ("sub.bf16x2" in ptx) == (element == "bf16" and capability == 90)
    assert "mma.sync" in ptx or "wgmma" in ptx
