"""What all fusions have in common: fewer bytes move, the same products are computed, fuel counts each."""

import pytest

from irloom.ir.cost import Cost, node_cost
from irloom.ir.graph import Module
from irloom.ir.parse import parse
from irloom.ir.show import show
from irloom.passes import limited, run_pipeline

LAYER = """
def layer(
    x: f32[T, 16], at: i32[T], seqs: seqs[T, S], kv: paged[f32, 16][P, 1, 8],
    pre: f32[16] = weight("l.{i}.pre"), post: f32[16] = weight("l.{i}.post"), ln: f32[16] = weight("l.{i}.n"),
    wq: f32[16, 16] = weight("l.{i}.q"), wk: f32[8, 16] = weight("l.{i}.k"),
    wv: f32[8, 16] = weight("l.{i}.v"),
    qn: f32[8] = weight("l.{i}.qn"), kn: f32[8] = weight("l.{i}.kn"), wo: f32[16, 16] = weight("l.{i}.o"),
    wg: f32[32, 16] = weight("l.{i}.gate"), wu: f32[32, 16] = weight("l.{i}.up"),
    wd: f32[16, 32] = weight("l.{i}.down"),
):
    h = rms_norm(x, pre)
    q = linear(h, wq)
    k = linear(h, wk)
    v = linear(h, wv)
    q1 = reshape(q, dims=(T, 2, 8))
    k1 = reshape(k, dims=(T, 1, 8))
    v1 = reshape(v, dims=(T, 1, 8))
    q2 = rms_norm(q1, qn)
    k2 = rms_norm(k1, kn)
    q3 = rope(q2, at)
    k3 = rope(k2, at)
    kv1 = kv_append(kv, k3, v1, seqs)
    a = paged_attention(q3, kv1, seqs, scale=0.3)
    a1 = reshape(a, dims=(T, 16))
    o = linear(a1, wo)
    p = rms_norm(o, post)
    s = add(x, p)
    n = rms_norm(s, ln)
    g = linear(n, wg)
    u = linear(n, wu)
    c = silu(g)
    m = mul(c, u)
    d = linear(m, wd)
    y = add(s, d)
    return y, kv1
"""
PASSES = {"fuse-qkv": 1, "fuse-mlp": 2, "fuse-norm": 1, "fuse-epilogue": 2, "fuse-rope-append": 2}
"""How many changes each makes in that layer, alone."""


def cost(m: Module, tokens: int) -> Cost:
    return sum((node_cost(n, tokens, 1, 100) for n in m.funcs["layer"].nodes), Cost(0, 0))


@pytest.mark.parametrize("name", PASSES)
def test_a_fusion_moves_fewer_bytes(name):
    before = parse(LAYER)
    after, record = run_pipeline(before, name)
    assert len(record.steps[0].changes) == PASSES[name]
    for tokens in (1, 64):
        one, other = cost(before, tokens), cost(after, tokens)
        assert other.bytes < one.bytes
        assert abs(other.flops - one.flops) < 0.05 * one.flops, "products are most of them"


def test_together_they_leave_one_op_for_each_step_of_a_layer():
    after, _ = run_pipeline(parse(LAYER), list(PASSES))
    ops = [n.op.name for n in after.funcs["layer"].nodes if n.op.name not in ("reshape", "split")]
    assert ops == [
        "rms_norm", "linear", "rope_append", "paged_attention", "linear", "add_rms_norm", "linear",
        "silu_mul", "linear_act",
    ]  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_fuel_counts_every_change(name):
    before = parse(LAYER)
    for fuel in range(PASSES[name] + 1):
        with limited(fuel) as spent:
            after, record = run_pipeline(before, name)
        assert spent.spent == len(record.steps[0].changes) == fuel
        assert (show(after, header=False) == show(before, header=False)) == (fuel == 0)
