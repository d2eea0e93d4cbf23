"""The error of every value that a program has before and after a pass, for who colours a graph by it."""

import math

from irloom.ir.ops import mul, silu_mul
from irloom.ir.parse import parse
from irloom.passes import run_pipeline
from irloom.passes.fuse_mlp import FuseSiluMul
from irloom.passes.node_errors import node_errors

PROGRAM = """
def layer(x: f32[T, 4], w: f32[4] = weight("l.{i}.weight")):
    n = rms_norm(x, w)
    s = silu(n)
    y = mul(s, x)
    z = sin(y)
    return z

def main(x: f32[T, 4]):
    for i in range(2):
        x = layer[i](x)
    return x
"""


def errors(program=PROGRAM, pipeline="fuse-mlp"):
    return node_errors(run_pipeline(parse(program), pipeline)[1].steps[0])


def test_values_that_both_programs_have_are_named_by_function():
    found = errors()
    assert set(found) == {("layer", "n"), ("layer", "y"), ("layer", "z")}  # silu is gone
    assert max(found.values()) < 1e-6


def test_a_mistake_is_where_it_is_made_and_behind(monkeypatch):
    monkeypatch.setattr(FuseSiluMul, "replace", lambda self, gate, up: mul(silu_mul(gate, up), 1.5))
    found = errors()
    assert found["layer", "y"] > 0.4 and found["layer", "z"] > 0.01
    assert 0 < found["layer", "n"] < math.inf  # of the second layer, which reads what the first has made


def test_values_of_another_kind_than_before_are_left_out(monkeypatch):
    kept = errors("def main(x: f32[T, 4]):\n    y = exp(x)\n    z = sin(y)\n    return z\n", "canonicalize")
    assert kept == {("main", "y"): 0.0, ("main", "z"): 0.0}
