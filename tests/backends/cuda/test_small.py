"""Products of a few rows against their bodies in f64: every kind of weight, and all they take along."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels.eight_bits import Sweep
from irloom.backends.cuda.kernels.few_rows import Strip
from irloom.backends.cuda.kernels.form import Form
from irloom.backends.cuda.kernels.small import small_product, strips
from irloom.backends.cuda.quantized import Operand, Quantized
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.ops import rms_norm
from irloom.ir.ops.activation import ACTIVATIONS
from irloom.ir.quantized import quantize

from .cross import compiled
from .device import DEVICE

PARTS = "norm", "bias", "residual"
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
BLOCK = Quant("f8", ELEMS["f8e4m3"], 128, ELEMS["f32"])
KINDS = {
    "plain": None,
    "fp8 per row": Quant("f8", ELEMS["f8e4m3"], 0, ELEMS["f32"]),
    "int8 groups": Quant("i8g32", ELEMS["i8"], 32, ELEMS["f16"]),
    "u8 rows with zeros": Quant("u8", ELEMS["u8"], 0, ELEMS["bf16"], zero=ELEMS["f16"]),
    "int4 groups": Quant("i4g32", ELEMS["i4"], 32, ELEMS["bf16"]),
    "int4 small groups": Quant("i4g8", ELEMS["i4"], 8, ELEMS["f16"]),
    "u4 groups with zeros": Quant("u4g64", ELEMS["u4"], 64, ELEMS["f16"], zero=ELEMS["u8"]),
}


def weight_of(kind: str, w: torch.Tensor) -> tuple[Operand, torch.Tensor]:
    """``w`` rounded to a kind, as kernels take it, and as the f64 it stands for."""
    quant = KINDS[kind]
    if quant is None:
        return w, w.double()
    made = quantize(w.float(), quant)
    return Quantized(made.packed(), made.scales, made.zeros, quant), made.dequantize().double()


def expected(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    norm: torch.Tensor | None,
    form: Form,
) -> torch.Tensor:
    """What the ops say, in f64; rows that are rounded in between are those of ``x``'s own element."""
    h = x if form.eps is None else rms_norm.reference(x if form.quant else x.double(), norm, eps=form.eps)
    if form.quant is not None:
        h = quantize(h.float(), form.quant).dequantize()
    y = h.double() @ w.T
    y = y if bias is None else y + bias.double()
    if form.gated:
        gate, up = y.chunk(2, 1)
        y = ACTIVATIONS[form.act or ""](gate) * up
    elif form.act is not None:
        y = ACTIVATIONS[form.act](y)
    y = y * form.scale
    if form.softcap is not None:
        y = form.softcap * torch.tanh(y / form.softcap)
    return y if residual is None else y + residual.double()


def check(form: Form, kind: str, dtype: torch.dtype, t: int, n: int, k: int, *parts: str) -> None:
    """Strips give what the ops say, in rows that lie apart, with poison between them and in the result."""
    x = torch.randn(t, k + 8).to(dtype)[:, :k]
    w, exact = weight_of(kind, torch.randn(n, k).div_(k**0.5).to(dtype))
    width = n // 2 if form.gated else n
    bias = torch.randn(n).to(dtype) if "bias" in parts else None
    norm = (1 + 0.1 * torch.randn(k)).to(dtype) if "norm" in parts else None
    residual = torch.randn(t, width).to(dtype) if "residual" in parts else None
    given: list[Any] = [x, w, bias, residual, norm]
    want = expected(x, exact, bias, residual, norm, form)
    size = want.norm().clamp(min=want.numel() ** 0.5)  # one result alone may be almost nothing
    x, w, bias, residual, norm = (_moved(a) for a in given)
    ways = strips(x, x, w, form) or (Strip(4, 2, 4, 2),)
    for strip in (*ways[:2], ways[-1]):
        room = torch.full((t, width + 3), float("nan"), dtype=dtype, device=DEVICE)
        small_product(room[:, :width], x, w, bias, residual, norm, form, strip)
        out = room[:, :width].cpu().double()
        assert (out - want).norm() <= TOLERANCE[dtype] * size, strip
        assert room[:, width:].isnan().all()


def _moved(a: Any) -> Any:
    if isinstance(a, Quantized):
        zeros = None if a.zeros is None else a.zeros.to(DEVICE)
        return Quantized(a.values.to(DEVICE), a.scales.to(DEVICE), zeros, a.quant)
    if a is None or DEVICE == "cpu":
        return a
    return torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device=DEVICE).copy_(a)


@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_in_front_and_all_that_may_follow(kind: str) -> None:
    form = Form(eps=1e-5, act="silu", gated=True, scale=0.7, softcap=3.0)
    check(form, kind, torch.bfloat16, 1, 36, 320, "norm", "bias", "residual")
    check(form, kind, torch.float32, 2 if "4" in kind else 3, 20, 64, "norm", "bias", "residual")


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([*KINDS]), st.sampled_from([*TOLERANCE]), st.integers(1, 4), st.integers(1, 20),
    st.integers(1, 6), st.sampled_from([None, *ACTIVATIONS]), st.sets(st.sampled_from(PARTS)),
)  # fmt: skip
def test_any_shape(
    kind: str, dtype: torch.dtype, t: int, n: int, k: int, act: str | None, parts: set[str]
) -> None:
    t = min(t, 2) if "4 " in kind else t
    gated = act is not None and n % 2 == 0
    check(Form(1e-6 if "norm" in parts else None, act, gated), kind, dtype, t, n, k * 64, *parts)


@pytest.mark.parametrize("k", [1, 7, 100])
def test_rows_of_any_length(k: int) -> None:
    check(Form(eps=1e-5), "plain", torch.float32, 2, 9, k)


def test_what_fills_no_words_is_for_other_kernels() -> None:
    x = torch.randn(1, 7, dtype=torch.bfloat16)
    assert strips(x, x, x, Form()) == ()
    x, quant = torch.randn(1, 24), Quant("i4g12", ELEMS["i4"], 12, ELEMS["f16"])
    made = quantize(torch.randn(8, 24), quant)
    assert strips(x, x, Quantized(made.packed(), made.scales, None, quant), Form()) == ()


def test_longer_rows_than_are_in_flight() -> None:
    check(Form(eps=1e-5), "plain", torch.float32, 1, 5, 3 * 2048 + 100)
    check(Form(eps=1e-5), "int4 groups", torch.float32, 1, 5, 3 * 4096 + 96)


@pytest.mark.parametrize("group", [0, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_rounded_in_between(group: int, dtype: torch.dtype) -> None:
    form = Form(eps=1e-5, quant=Quant("a8", ELEMS["f8e4m3"], group, ELEMS["f32"]))
    check(form, "fp8 per row", dtype, 2, 12, 384, "norm")
    check(Form(quant=form.quant), "fp8 per row", dtype, 1, 12, 3 * 2048)


def test_a_row_of_zeros_rounds_to_zeros() -> None:
    x, w = torch.zeros(1, 256, device=DEVICE), torch.ones(8, 256, device=DEVICE)
    form = Form(quant=Quant("a8", ELEMS["f8e4m3"], 128, ELEMS["f32"]))
    out = torch.full((1, 8), float("nan"), device=DEVICE)
    small_product(out, x, w, None, None, None, form, strips(out, x, w, form)[0])
    assert (out == 0).all()


@pytest.mark.parametrize(("share", "group"), [(0, 0), (128, 128)])
def test_scales_of_blocks_and_of_a_whole_weight(share: int, group: int) -> None:
    n, k = 140, 256
    values = torch.randn(n, k).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-n // share) if share else 1, k // group if group else 1) + 0.5
    big = scales.repeat_interleave(share or n, 0)[:n].repeat_interleave(group or k, 1)
    x = torch.randn(2, k)
    want = x.double() @ (values.double() * big.double()).T
    w = Quantized(values.to(DEVICE), scales.to(DEVICE), None, BLOCK)
    out = torch.full((2, n), float("nan"), device=DEVICE)
    small_product(out, x.to(DEVICE), w, None, None, None, Form(), Strip(4, 2, 4, 2))
    assert (out.cpu() - want).norm() <= 1e-6 * want.norm()


@pytest.mark.parametrize("share", [0, 1, 128])
@pytest.mark.parametrize("sweep", [Sweep(4, 1, 1, 2), Sweep(8, 2, 2, 1)])
@pytest.mark.parametrize("normed", [torch.bfloat16, torch.float32])
def test_a_rounded_row_goes_with_all_a_program_reads(share: int, sweep: Sweep, normed: torch.dtype) -> None:
    """With scales of blocks, of rows or of all; and parts that a program comes to later."""
    n, k, group = 136, 768, 128 if share == 128 else 0
    values = torch.randn(n, k).to(torch.float8_e4m3fn)
    scales = (torch.rand(-(-n // share) if share else 1, k // group if group else 1) + 0.5) / 16
    exact = values.double() * scales.double().repeat_interleave(share or n, 0)[:n].repeat_interleave(
        group or k, 1
    )
    form = Form(1e-5, "silu", True, quant=Quant("a8", ELEMS["f8e4m3"], group, ELEMS["f32"]))
    x, norm = torch.randn(1, k).bfloat16(), (1 + 0.1 * torch.randn(k)).to(normed)
    bias, residual = torch.randn(n).bfloat16(), torch.randn(1, n // 2).bfloat16()
    want = expected(x, exact, bias, residual, norm, form)
    w = Quantized(values.to(DEVICE), scales.to(DEVICE), None, BLOCK)
    out = torch.full((1, n // 2), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    bias, residual, norm = (a.to(DEVICE) for a in (bias, residual, norm))
    small_product(out, x.to(DEVICE), w, bias, residual, norm, form, sweep)
    assert (out.cpu().double() - want).norm() <= 5e-3 * want.norm()


def test_the_largest_products_do_not_overflow() -> None:
    x, w = torch.full((1, 512), 448.0), torch.full((8, 512), 448.0).to(torch.float8_e4m3fn)
    scales = torch.full((8, 1), 2.0**-20, device=DEVICE)
    out, form = (
        torch.zeros(1, 8, device=DEVICE).bfloat16(),
        Form(quant=Quant("a8", ELEMS["f8e4m3"], 0, ELEMS["f32"])),
    )
    small_product(
        out,
        x.bfloat16().to(DEVICE),
        Quantized(w.to(DEVICE), scales, None, BLOCK),
        None,
        None,
        None,
        form,
        Sweep(4, 1, 1, 2),
    )
    assert (out == 98.0).all()


def test_results_may_take_the_place_of_the_residual() -> None:
    x, w, y = torch.randn(1, 64), torch.randn(16, 64), torch.randn(1, 16)
    want, out = y + x @ w.T, y.to(DEVICE)
    small_product(out, x.to(DEVICE), w.to(DEVICE), None, out, None, Form(), strips(out, x, w, Form())[0])
    torch.testing.assert_close(out.cpu(), want)


@pytest.mark.parametrize("rows", [0, 5])
def test_more_rows_are_for_other_kernels(rows: int) -> None:
    x = torch.randn(rows, 64)
    assert strips(x, x, torch.randn(8, 64), Form()) == ()


POINTERS = {**dict.fromkeys(("out", "x", "norm", "residual"), "*bf16"), "words": "*i32"}
NUMBERS = {
    **dict.fromkeys(("T", "out_row", "x_row", "residual_row"), "i32"),
    **dict.fromkeys(("eps", "scale", "cap"), "fp32"),
}
SHAPE = {
    "zeros": None, "bias": None, "N": 6144, "K": 4096, "NORM": True, "GATED": False, "ACT": None,
    "CAPPED": False, "SHARE": 1, "GROUP": 0, "ROUND": 0, "ROWS": 1, "CHAIN": True,
}  # fmt: skip
READ = "ld.global.L1::evict_first.L2::cache_hint.v4.b32"


def compiled_ptx(signature: dict[str, str], **constants: Any) -> tuple[str, str]:
    """What the kernel does before the one in front of it has ended, and all of it."""
    made = compiled(
        "irloom.backends.cuda.kernels.small_kernel", "small_kernel", POINTERS | NUMBERS | signature,
        SHAPE | constants, num_warps=4, num_stages=1,
    )  # fmt: skip
    assert "ld.local" not in made["ptx"]
    return made["ptx"][: made["ptx"].index("griddepcontrol.wait")], made["ptx"]


def test_weights_are_read_16_bytes_at_a_time_before_waiting() -> None:
    constants = {
        "scales": None,
        "KIND": "bf16",
        "PER": 2,
        "PARTS": 1,
        "BN": 8,
        "BK": 1024,
        "WIDE": 8,
        "DEPTH": 2,
    }
    early, _ = compiled_ptx({}, **constants)
    assert early.count(READ) == 8 * 2


def test_four_bit_weights_are_cut_out_by_one_instruction_each() -> None:
    constants = {
        "KIND": "i4",
        "PER": 8,
        "GROUP": 128,
        "PARTS": 2,
        "BN": 8,
        "BK": 4096,
        "WIDE": 32,
        "DEPTH": 2,
    }
    early, whole = compiled_ptx({"scales": "*bf16"}, **constants)
    assert early.count(READ) == 8 * 2
    assert whole.count("lop3.b32") == 8 * 2 * 32


@pytest.mark.parametrize("norm", ["*i32", "*fp32"])
def test_two_entries_are_converted_and_multiplied_at_once(norm: str) -> None:
    """Of 16 entries in a thread for each of 8 rows."""
    numbers = {n: NUMBERS[n] for n in ("out_row", "residual_row", "eps", "scale", "cap")}
    pointers = {"out": "*bf16", "residual": "*bf16", "scales": "*fp32"}
    constants = {
        "bias": None, "N": 4096, "K": 4096, "KIND": "bf16", "NORM": True, "GATED": False, "ACT": None,
        "CAPPED": False, "SHARE": 1, "GROUP": 0, "ROUND": 4096, "PARTS": 4, "BN": 8, "BK": 4096, "DEPTH": 1,
        "CHAIN": True,
    }  # fmt: skip
    ptx = compiled(
        "irloom.backends.cuda.kernels.eight_bits", "sweep_kernel",
        pointers | numbers | {"x": "*i32", "norm": norm, "words": "*i32"}, constants,
        num_warps=8, num_stages=1,
    )["ptx"]  # fmt: skip
    assert ptx[: ptx.index("griddepcontrol.wait")].count(READ) == 8
    assert ptx.count("fma.rn.f16x2") == 8 * 8
    assert "ld.local" not in ptx
