"""Weight expressions: their text, their types, and what they compute."""

import ast
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from irloom.ir.checkpoint import SafetensorsCheckpoint
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.errors import IRError
from irloom.ir.quantized import QuantizedTensor, pack4, quantize, unpack4
from irloom.ir.weights import (
    Affine,
    Binding,
    Cast,
    Concat,
    Const,
    Quantize,
    Reshape,
    Scale,
    Slice,
    Tensor,
    Transpose,
    WeightExpr,
    materialize,
    materialize_all,
    parse_weight,
    show_weight,
    weight_type,
)

I4, I8 = ELEMS["i4"], ELEMS["i8"]
SCHEMES = {
    "i8g32": Quant("i8g32", I8, 32, ELEMS["f16"]),
    "i4g32": Quant("i4g32", I4, 32, ELEMS["f32"]),
    "i4g64z": Quant("i4g64z", I4, 64, ELEMS["f32"], ELEMS["i4"]),
    "u4g32z": Quant("u4g32z", ELEMS["u4"], 32, ELEMS["f32"], ELEMS["f16"]),
    "i8row": Quant("i8row", I8, 0, ELEMS["f32"]),
    "f8row": Quant("f8row", ELEMS["f8e4m3"], 0, ELEMS["f32"]),
    "f8tensor": Quant("f8tensor", ELEMS["f8e4m3"], 0, ELEMS["f32"], rows=0),
    "f8b32": Quant("f8b32", ELEMS["f8e4m3"], 32, ELEMS["f32"], rows=3),
}

dims = st.integers(0, 9)
leaves = st.one_of(st.builds(Tensor, st.text()), st.builds(Const, st.text(min_size=1)))
number = st.floats(allow_nan=False, allow_infinity=False)


def grown(x: st.SearchStrategy[WeightExpr]) -> st.SearchStrategy[WeightExpr]:
    return st.one_of(
        st.builds(Concat, st.lists(x, min_size=1, max_size=3).map(tuple), dims),
        st.builds(Slice, x, dims, dims, dims),
        st.builds(Transpose, x),
        st.builds(Reshape, x, st.lists(dims, max_size=3).map(tuple)),
        st.builds(Cast, x, st.sampled_from(list(ELEMS.values()))),
        st.builds(Affine, x, number, number),
        st.builds(Scale, x, x, dims),
        st.builds(Quantize, x, st.sampled_from(list(SCHEMES.values()))),
    )


def read(text: str) -> WeightExpr:
    return parse_weight(ast.parse(text, mode="eval").body, SCHEMES)


@given(st.recursive(leaves, grown, max_leaves=6))
def test_the_text_of_an_expression_reads_back_as_the_expression(expr):
    assert read(show_weight(expr)) == expr


FORMS = "hint: one of weight, const, concat, slice, transpose, reshape, cast, affine, scale, exp, quantize"
ELEM_HINT = (
    "hint: known: f64, f32, f16, bf16, f8e4m3, f8e5m2, f8e8m0, f4e2m1, i64, i32, i16, i8, i4, u8, u4, bool"
)
SCHEME_HINT = f"hint: known: {', '.join(SCHEMES)}"
REFUSED = {
    "wieght('a')": f"`wieght` is unknown\n{FORMS}",
    "weight(3)": "`3` is not a string",
    "weight('a', 1)": 'wrong number of arguments\nhint: weight("name")',
    "concat(weight('a'))": "wrong number of arguments\nhint: concat(a, b, ..., dim=0)",
    "cast(weight('a'), f31)": f"`f31` is not an element\n{ELEM_HINT}",
    "quantize(weight('a'), i3)": f"`i3` is not a quantized element of the header\n{SCHEME_HINT}",
    "reshape(weight('a'), (2, x))": "`(2, x)` is not a tuple of dims",
    "reshape(weight('a'), (2, -1))": "`(2, -1)` is not a tuple of dims",
    "'a'": f"is not a call\n{FORMS}",
}


@pytest.mark.parametrize("text", REFUSED)
def test_text_that_is_no_expression_is_refused(text):
    with pytest.raises(IRError) as refused:
        read(text)
    assert str(refused.value) == f"weight expression `{text}`: {REFUSED[text]}"


def test_a_scale_that_is_not_finite_is_refused():
    with pytest.raises(IRError, match=r"^affine: scale inf and shift 0.0 must be finite$"):
        read("affine(weight('a'), 1e999, 0)")


A, B, B1 = torch.randn(4, 64), torch.randn(2, 64), torch.randn(2, 64)
COLUMN = torch.randn(64)
WIDE = torch.cat([A[:, :9], A, A.bfloat16().float()], 1)
CONSTS: Mapping[str, torch.Tensor] = {"freq": torch.arange(3.0)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> SafetensorsCheckpoint:
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    tensors = {
        "a": A,
        "layers.0.b": B,
        "layers.1.b": B1,
        "half": A.bfloat16(),
        "ids": torch.arange(4),
        "column": COLUMN,
        "one": torch.tensor(3.0),
    }
    save_file(tensors, path)
    return SafetensorsCheckpoint(path.parent)


@pytest.mark.parametrize("block", [1, 300, 1 << 24], ids=lambda b: f"{b} bytes a block")
@pytest.mark.parametrize(
    ("text", "direct"),
    [
        ("weight('a')", A),
        ("const('freq')", CONSTS["freq"]),
        ("weight('layers.{i}.b')", B1),
        ("concat(weight('a'), weight('layers.{i}.b'), dim=0)", torch.cat([A, B1])),
        ("concat(weight('a'), weight('a'), dim=1)", torch.cat([A, A], 1)),
        ("slice(weight('a'), 1, 3, 9)", A[:, 3:9]),
        ("transpose(weight('a'))", A.T),
        ("cast(transpose(reshape(weight('a'), (2, 2, 64))), f32)", A.reshape(2, 2, 64).transpose(1, 2)),
        ("slice(concat(weight('a'), weight('layers.{i}.b'), dim=0), 0, 3, 5)", torch.cat([A[3:], B1[:1]])),
        ("concat(slice(weight('a'), 1, 0, 9), weight('a'), cast(weight('half'), f32), dim=1)", WIDE),
        ("cast(reshape(slice(weight('a'), 1, 0, 32), (8, 16)), f16)", A[:, :32].reshape(8, 16).half()),
        ("cast(weight('one'), bf16)", torch.tensor(3.0).bfloat16()),
        ("reshape(weight('a'), (2, 2, 64))", A.reshape(2, 2, 64)),
        ("cast(weight('a'), bf16)", A.bfloat16()),
        ("affine(weight('a'), 2.0, 1.0)", A * 2 + 1),
        ("affine(exp(cast(weight('half'), f32)), -1.0, 0.0)", -A.bfloat16().float().exp()),
        ("scale(weight('a'), slice(weight('column'), 0, 0, 4), 0)", A * COLUMN[:4, None]),
        ("scale(weight('a'), weight('column'), 1)", A * COLUMN),
        ("slice(scale(weight('a'), weight('column'), 1), 0, 1, 3)", (A * COLUMN)[1:3]),
        (
            "scale(weight('half'), affine(weight('column'), 1.0, 1.0), 1)",
            (A.bfloat16().float() * (COLUMN + 1)).bfloat16(),
        ),
        (
            "scale(reshape(weight('a'), (2, 2, 64)), weight('column'), 2)",
            A.reshape(2, 2, 64) * COLUMN,
        ),
        ("affine(weight('half'), 1.0, 1.0)", (A.bfloat16().float() + 1).bfloat16()),
        (
            "affine(cast(slice(transpose(weight('half')), 0, 0, 8), f32), 3, -1)",
            A.bfloat16().float().T[:8] * 3 - 1,
        ),
    ],
)
def test_an_expression_computes_what_torch_does(checkpoint, text, direct, block, monkeypatch):
    monkeypatch.setattr("irloom.ir.checkpoint.BLOCK", block)
    expr = read(text)
    out = materialize(expr, checkpoint, 1, CONSTS)
    assert isinstance(out, torch.Tensor)
    assert torch.equal(out, direct)
    assert out.dtype == direct.dtype
    assert weight_type(expr, checkpoint, 1, CONSTS).dims == direct.shape


UNFIT = {
    'weight("layers.{i}.b")': (
        "weight: `layers.{i}.b` needs a layer index\nhint: its function is called without one"
    ),
    'const("gone")': "SELF: the module has no such constant\nhint: it has freq",
    'concat(weight("a"), weight("half"), dim=0)': (
        "SELF: parts do not join along dim 0: f32[4, 64], bf16[4, 64]"
    ),
    'concat(weight("a"), weight("layers.0.b"), dim=1)': (
        "SELF: parts do not join along dim 1: f32[4, 64], f32[2, 64]"
    ),
    'slice(weight("a"), 0, 2, 5)': "SELF: not for a weight that is f32[4, 64]",
    'scale(weight("a"), weight("column"), 0)': "SELF: f32[64] does not scale dim 0 of f32[4, 64]",
    'scale(weight("a"), weight("column"), 2)': "SELF: f32[64] does not scale dim 2 of f32[4, 64]",
    'scale(weight("a"), weight("ids"), 0)': "SELF: i64[4] does not scale dim 0 of f32[4, 64]",
    'reshape(weight("a"), (4, 63))': "SELF: not for a weight that is f32[4, 64]",
    'quantize(weight("ids"), i8row)': "SELF: not for a weight that is i64[4]",
    'quantize(slice(weight("a"), 1, 0, 48), i4g32)': (
        "i4g32: group 32 does not divide the last dim of [4, 48]\n"
        "hint: choose a group that divides it, or skip this weight"
    ),
}


@pytest.mark.parametrize("text", UNFIT)
def test_an_expression_that_does_not_fit_the_checkpoint_says_why(checkpoint, text):
    with pytest.raises(IRError) as refused:
        materialize(read(text), checkpoint, consts=CONSTS)
    assert str(refused.value) == UNFIT[text].replace("SELF", text)


def test_an_absent_tensor_is_named_with_the_nearest_one(checkpoint):
    with pytest.raises(Exception, match="no tensor") as refused:
        materialize(Tensor("layer.0.b"), checkpoint)
    assert (
        str(refused.value)
        == f"{checkpoint.path}: no tensor `layer.0.b`\nhint: the nearest name in it is `layers.0.b`"
    )


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=str)
def test_rounding_is_within_half_a_step_and_repeating_it_changes_nothing(checkpoint, scheme):
    rounded = materialize(Quantize(Tensor("a"), scheme), checkpoint)
    assert isinstance(rounded, QuantizedTensor)
    back = rounded.dequantize()
    plain = replace(scheme, zero=None)
    step = QuantizedTensor(torch.ones_like(rounded.values), rounded.scales, None, plain).dequantize()
    error = (back - A).abs() / step
    assert error.max() <= (16.01 if scheme.base.kind == "float" else 1.01 if scheme.zero == I4 else 0.51)
    assert rounded.dims == A.shape
    assert rounded.scales.shape == (-(-4 // (scheme.rows or 4)), 64 // (scheme.group or 64))
    assert rounded.nbytes == scheme.nbytes((4, 64))
    if not scheme.zero and scheme.scale == ELEMS["f32"]:
        assert torch.allclose(quantize(back, scheme).dequantize(), back, rtol=1e-6)


@pytest.mark.parametrize("block", [1, 300, 1 << 24])
@pytest.mark.parametrize("scheme", ["i4g32", "f8tensor", "f8b32"])
def test_what_is_joined_is_rounded_as_one(checkpoint, scheme, block, monkeypatch):
    """Whatever a block of the file holds; rows that share a scale do so across parts."""
    monkeypatch.setattr("irloom.ir.checkpoint.BLOCK", block)
    monkeypatch.setattr("irloom.ir.quantized._CHUNK", block)
    joined = read(f"quantize(concat(weight('a'), weight('layers.0.b'), dim=0), {scheme})")
    out = materialize(joined, checkpoint)
    direct = quantize(torch.cat([A, B]), SCHEMES[scheme])
    assert isinstance(out, QuantizedTensor)
    assert torch.equal(out.values.float(), direct.values.float())
    assert torch.equal(out.scales, direct.scales)


def test_each_matrix_of_a_stack_has_blocks_of_its_own():
    stack = torch.stack([A, A * 3])
    for scheme in (SCHEMES["f8tensor"], SCHEMES["f8b32"]):
        whole = quantize(stack, scheme)
        for x, scales, back in zip(stack, whole.scales, whole.dequantize(), strict=True):
            assert torch.equal(quantize(x, scheme).scales, scales)
            assert torch.equal(quantize(x, scheme).dequantize(), back)


def test_a_group_of_zeros_stays_zero():
    for scheme in SCHEMES.values():
        assert not quantize(torch.zeros(1, 64), scheme).dequantize().any()


def test_a_weight_that_is_not_finite_is_refused():
    with pytest.raises(IRError) as refused:
        quantize(torch.full((1, 32), torch.inf), SCHEMES["i4g32"])
    assert str(refused.value) == (
        "quantize: i4g32: a scale does not fit f32\n"
        "hint: the weight holds an infinity, a NaN, or entries too large for the scale's element"
    )


@given(st.lists(st.integers(-8, 7), min_size=2, max_size=20).filter(lambda v: len(v) % 2 == 0))
def test_two_four_bit_entries_share_a_byte(entries):
    values = torch.tensor([entries], dtype=torch.int8)
    assert pack4(values).shape == (1, len(entries) // 2)
    assert torch.equal(unpack4(pack4(values)), values)
    unsigned = (values + 8).view(torch.uint8)
    assert torch.equal(unpack4(pack4(unsigned), ELEMS["u4"]), unsigned)


def test_all_weights_come_in_the_order_of_the_file_in_their_declared_element(checkpoint):
    half = ELEMS["bf16"]
    bindings = [
        Binding("b", 1, Tensor("layers.{i}.b"), half),
        Binding("b", 0, Tensor("layers.{i}.b"), half),
        Binding("a", None, Quantize(Tensor("a"), SCHEMES["i4g32"]), SCHEMES["i4g32"]),
        Binding("f", None, Const("freq")),
    ]
    seen: list[tuple[str, int | None, object]] = []
    materialize_all(
        bindings,
        checkpoint,
        lambda b, w: seen.append((b.name, b.index, w.quant if isinstance(w, QuantizedTensor) else w.dtype)),
        CONSTS,
    )
    stored = [n for n in checkpoint.names() if n not in {"half", "ids", "one", "column"}]
    wanted = {
        "a": ("a", None, SCHEMES["i4g32"]),
        "layers.0.b": ("b", 0, torch.bfloat16),
        "layers.1.b": ("b", 1, torch.bfloat16),
    }
    assert seen == [("f", None, torch.float32), *(wanted[name] for name in stored)]


def test_the_file_is_never_written_through_a_weight(checkpoint, tmp_path: Path):
    out = materialize(Tensor("a"), checkpoint)
    assert isinstance(out, torch.Tensor)
    out.zero_()
    assert torch.equal(checkpoint.read("a"), A)
