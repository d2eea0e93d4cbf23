"""Gates and the rounding of activations, against their bodies."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.cuda.kernels.activation import act_mul, clamped_silu_mul
from irloom.backends.cuda.kernels.quantize import quantize
from irloom.ir.ops import OPS
from irloom.ir.ops.activation import ACTIVATIONS
from irloom.ir.quantized import quantize as rounded
from tests.backends.cuda.cross import compiled
from tests.backends.cuda.device import DEVICE
from tests.backends.cuda.near import (
    assert_near,
    assert_rounded_alike,
    columns,
    normal,
    poisoned,
    quantized,
)

FORMS = [("f8e4m3", 0), ("f8e4m3", 128), ("i8", 0), ("i8", 64)]


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation(act: str) -> None:
    wide = normal(1, 3, 200) * 4
    gate, up = wide.split([75, 125], 1)[0], wide[:, 100:175]
    out = poisoned(3, 75)
    act_mul(out, gate, up, act=act)
    assert_near(out, ACTIVATIONS[act](gate.double()) * up)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 4), st.sampled_from([1, 100, 384]), st.sampled_from([torch.bfloat16, torch.float16]))
def test_halves_of_a_product(t: int, d: int, dtype: torch.dtype) -> None:
    gate, up = normal(1, t, 2 * d, dtype=dtype).split(d, 1)
    out = poisoned(t, d, dtype=dtype)
    act_mul(out, gate, up, act="silu")
    assert_near(out, OPS["silu_mul"].reference(gate.double(), up.double()))
    clamped_silu_mul(out, gate, up, limit=0.7, alpha=1.7, shift=1.0)
    kept = OPS["clamped_silu_mul"].reference(gate.double(), up.double(), limit=0.7, alpha=1.7, shift=1.0)
    assert_near(out, kept)


@pytest.mark.parametrize("form", FORMS)
def test_a_rounded_gate_is_the_gate_rounded(form: tuple[str, int]) -> None:
    gate, up = columns(1, 2, 384, dtype=torch.bfloat16), columns(2, 2, 384, dtype=torch.bfloat16)
    out, exact = quantized(2, 384, *form), poisoned(2, 384, dtype=torch.bfloat16)
    act_mul(out, gate, up, act="gelu_tanh")
    act_mul(exact, gate, up, act="gelu_tanh")
    assert_rounded_alike(out, rounded(exact, out.quant))


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 5), st.sampled_from(FORMS), st.floats(1e-6, 1e6), st.booleans())
def test_rounding_is_to_the_bit(t: int, form: tuple[str, int], size: float, plain: bool) -> None:
    d = 384 if form[1] else 100
    x = columns(3, t, d, dtype=torch.float32 if plain else torch.bfloat16) * size
    x[0] = 0
    rounds_to_the_bit(x, form)


@pytest.mark.parametrize("form", FORMS)
def test_halves_are_rounded_to_the_bit(form: tuple[str, int]) -> None:
    """In i8 every other entry lies between two numbers, but for what the inverse of its scale is off."""
    i = torch.arange(128) % 255
    i[::64] = 254
    x = i * torch.tensor([[1], [3], [5], [11]])
    rounds_to_the_bit(x.float().to(DEVICE), form)


def test_entries_are_rounded_after_the_product_with_the_inverse_of_their_scale() -> None:
    """The interpreter does that anyway; a compiler makes one operation of a product and a sum if it may."""
    signature = {
        "out": "*i8", "scales": "*fp32", "x": "*bf16", "rows": "i32", "out_t": "i32", "scales_t": "i32",
        "scales_g": "i32", "x_t": "i32",
    }  # fmt: skip
    sizes = {"D": 128, "GROUP": 128, "LIMIT": 127.0, "R": 8, "B": 128, "CHAIN": True}
    made = compiled("irloom.backends.cuda.kernels.quantize", "round_rows", signature, sizes, num_warps=2)
    assert "fma." not in made["ptx"]
    assert "cvt.rni.f32.f32" in made["ptx"]


def rounds_to_the_bit(x: torch.Tensor, form: tuple[str, int]) -> None:
    """As the reference does."""
    out = quantized(len(x), x.shape[1], *form)
    quantize(out, x)
    want = rounded(x, out.quant)
    assert torch.equal(out.scales, want.scales)
    assert torch.equal(out.values.float(), want.values.float())
