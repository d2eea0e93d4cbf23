"""A quantized program computes exactly what the program computes on dequantized weights."""

import pytest
import torch

from irloom.ir.checkpoint import RandomCheckpoint
from irloom.ir.interp import Interpreter
from irloom.ir.parse import parse
from irloom.ir.quantized import QuantizedTensor
from irloom.ir.weights import materialize
from irloom.passes import run_pipeline
from irloom.passes.check import compare
from irloom.passes.quantize import Quantize
from irloom.passes.sample import BATCHES, entry, inputs, random_weights

PROGRAM = """
def main(
    ids: i32[T],
    embed: f32[100, 64] = weight("embed.weight"),
    wg: f32[96, 64] = weight("gate.weight"),
    wu: f32[96, 64] = weight("up.weight"),
    wd: f32[64, 96] = weight("down.weight"),
):
    x = embedding(ids, embed)
    g = linear(x, wg)
    u = linear(x, wu)
    h = silu_mul(g, u)
    y = linear(h, wd)
    logits = linear(y, embed)
    return logits
"""


class Rounded(RandomCheckpoint):
    """A checkpoint whose tensors are what those of a quantized program come to."""

    def __init__(self, tensors):
        super().__init__(0, {name: tuple(x.shape) for name, x in tensors.items()})
        self.tensors = tensors

    def read(self, name):
        return self.tensors[name]


@pytest.mark.parametrize(
    "pipeline",
    [
        "quantize(int8)",
        "quantize(int8, group=0)",
        "quantize(int4)",
        "quantize(int4, group=16, scale=f32, override='embed=int8', skip='down')",
        "quantize(int4, scale=bf16)",
        "quantize(fp8, activations=plain)",
        "quantize(fp8, weights=tensor, activations=plain, override='embed=fp8')",
    ],
)
def test_the_reference_is_the_program_on_dequantized_weights(pipeline):
    before = parse(PROGRAM)
    after, _ = run_pipeline(before, pipeline)
    weights = random_weights([before])
    tensors = {}
    for old, new in zip(before.main.weights, after.main.weights, strict=True):
        assert new.weight is not None
        assert old.weight is not None
        x = materialize(new.weight, weights)
        tensors[getattr(old.weight, "name", "")] = x.dequantize() if isinstance(x, QuantizedTensor) else x
    for batch in BATCHES:
        given = inputs([before], batch)
        args = [given[p.name] for p in entry(before).data]
        (want,) = Interpreter(before, Rounded(tensors))(*args)
        (got,) = Interpreter(after, weights)(*args)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_eight_bits_are_closer_than_four_and_both_within_their_budgets():
    before = parse(PROGRAM)
    moved = {}
    for p in (Quantize("int8"), Quantize("int4"), Quantize("fp8"), Quantize("fp8", activations="plain")):
        after, _ = run_pipeline(before, [p])
        report = compare(before, after, p)
        assert report.allowed == p.budget()
        moved[p.dtype, p.activations] = report.norm
    int8, int4, fp8, weights = moved.values()
    assert 0 < int8 < weights < fp8 < int4
    assert int8 < 0.1 * int4


def test_the_type_alone_says_how_many_bytes_a_weight_takes():
    after, _ = run_pipeline(parse(PROGRAM), "quantize(int4)")
    assert after.main.param("wd").type.nbytes == 64 * 96 // 2 + 64 * 96 // 32 * 2
