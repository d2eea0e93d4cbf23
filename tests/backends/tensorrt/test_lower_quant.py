"""Quantized weights in a network: values and scales are weights of their own, and a layer multiplies them."""

from __future__ import annotations

import pytest
import torch

from irloom.backends.tensorrt.lower import lower
from irloom.backends.tensorrt.lower_quant import scales, values
from irloom.ir.elem import ELEMS, Quant
from irloom.ir.quantized import quantize
from tests.backends.tensorrt.real import refusal
from tests.backends.tensorrt.traffic import Beside, module

TOLERANCE = {"f32": 2e-4, "f16": 8e-3, "bf16": 6e-2}

SCHEMES = {
    "i8row": "quant(i8, group=0, scale=f16)",
    "i8g8": "quant(i8, group=8, scale=f16)",
    "i4g16": "quant(i4, group=16, scale=bf16)",
    "i4row": "quant(i4, group=0, scale=f32)",
    "f8row": "quant(f8e4m3, group=0, scale=f32)",
    "f8g16": "quant(f8e4m3, group=16, scale=f16)",
}
LAYERED = sorted(SCHEMES)
READ = {
    "u4g16": "quant(u4, group=16, scale=f16, zero=u4)",
    "i8g8z": "quant(i8, group=8, scale=f16, zero=i8)",
}


def product(name: str, elem: str) -> str:
    """A linear, whose weight has a scheme."""
    scheme = {**SCHEMES, **READ}[name]
    return (
        f"{name} = {scheme}\n"
        f'def main(x: {elem}[T, 32], w: {name}[24, 32] = quantize(weight("w"), {name})) -> {elem}[T, 24]:\n'
        f"    y: {elem}[T, 24] = linear(x, w)\n"
        "    return y\n"
    )


@pytest.mark.parametrize("elem", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", LAYERED)
def test_a_layer_dequantizes_while_the_engine_runs(name: str, elem: str) -> None:
    beside = Beside(module(product(name, elem)))
    stored = {t.name: str(t.elem) for t in beside.network.weights}
    assert stored["w.values"] == SCHEMES[name][6:].partition(",")[0]
    assert len(stored) == 2
    beside.run(3, TOLERANCE[elem])


@pytest.mark.parametrize("name", READ)
def test_zero_points_are_gone_when_weights_are_read(name: str) -> None:
    """TensorRT's scales are symmetric, so such a weight is kept in the element of the product."""
    beside = Beside(module(product(name, "f16")))
    assert [str(t) for t in beside.network.weights] == ["w.in_f16: f16[24, 32]"]
    assert "zero points" in beside.program.nodes[0].form
    beside.run(3, TOLERANCE["f16"])


def test_a_weight_that_two_ops_read_is_dequantized_once() -> None:
    source = (
        "i8g8 = quant(i8, group=8, scale=f16)\n"
        'def main(x: f32[T, 16], w: i8g8[16, 16] = quantize(weight("w"), i8g8)) -> f32[T, 16]:\n'
        "    y: f32[T, 16] = linear(x, w)\n"
        "    z: f32[T, 16] = linear(y, w)\n"
        "    return z\n"
    )
    beside = Beside(module(source))
    beside.run(2, 2e-3)
    assert [type(p.layer).__name__ for p in beside.network.layers].count("Dequantize") == 1


def test_stacks_of_matrices_and_tables() -> None:
    source = (
        "i4g8 = quant(i4, group=8, scale=f16)\n"
        "i8row = quant(i8, group=0, scale=f16)\n"
        "def main(\n"
        "    ids: i32[T], x: f32[T, 4, 16],\n"
        '    w: i4g8[4, 8, 16] = quantize(weight("w"), i4g8),\n'
        '    v: i8row[4, 8, 16] = quantize(weight("v"), i8row),\n'
        '    e: i8row[5, 8] = quantize(weight("e"), i8row),\n'
        ") -> (f32[T, 4, 8], f32[T, 4, 8], f32[T, 8]):\n"
        "    y: f32[T, 4, 8] = head_linear(x, w)\n"
        "    u: f32[T, 4, 8] = head_linear(x, v)\n"
        "    at: i32[T] = maximum(ids, 0)\n"
        "    z: f32[T, 8] = embedding(at, e, elem=f32)\n"
        "    return y, u, z\n"
    )
    Beside(module(source)).run(3, 2e-4)


def test_a_group_of_zeros_has_a_scale_above_zero() -> None:
    """TensorRT wants scales above 0, so what they scale is 0, whatever a file stores there."""
    x = torch.zeros(2, 8)
    x[0, :4] = torch.tensor([1.0, -2.0, 0.5, 0.0])
    q = quantize(x, Quant("i8g4", ELEMS["i8"], 4, ELEMS["f32"]))
    q.values[1] = 5
    kept = scales(q, ELEMS["f16"])
    assert (q.scales == 0).sum() == 3
    assert (kept > 0).all()
    made = kept.repeat_interleave(4, 1).float() * values(q)
    torch.testing.assert_close(made, q.dequantize(), rtol=1e-3, atol=0)


def test_a_scale_that_an_element_is_too_coarse_for_stays_above_zero() -> None:
    q = quantize(torch.full((1, 4), 1e-8), Quant("i8g4", ELEMS["i8"], 4, ELEMS["f32"]))
    assert (q.scales.half() == 0).all()
    assert (scales(q, ELEMS["f16"]) > 0).all()


@pytest.mark.tensorrt
@pytest.mark.parametrize("elem", ["f16", "bf16"])
@pytest.mark.parametrize("name", [*LAYERED, *READ])
def test_the_library_builds_products_of_each_scheme(name: str, elem: str) -> None:
    (segment,) = lower(module(product(name, elem)), split=False).segments
    assert refusal(segment.network) is None
