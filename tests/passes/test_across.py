"""Rewrites across the boundary of layers: same numbers, and layers are still functions."""

from dataclasses import dataclass

import pytest

from irloom.ir.graph import Loop
from irloom.ir.parse import parse
from irloom.ir.show import show
from irloom.passes import Pass, apply, apply_across, limited, run_pipeline
from irloom.passes.check import compare
from irloom.passes.fuse_norm import AddRmsNorm

BLOCKS = {
    "mlp": "u{i} = silu(h{i})",
    "gelu": "u{i} = gelu(h{i})",
    "wide": "e{i} = exp(h{i}) | s{i} = silu(h{i}) | u{i} = mul(e{i}, s{i})",
}
"""What stands between the norm and the linear of a layer of each kind."""
LAYER = "h{i} = rms_norm(x{i}, n{i}) | BLOCK | o{i} = linear(u{i}, w{i}) | x{n} = add(x{i}, o{i})"


def outlined(*kinds):
    """A stack of layers ``x + linear(f(rms_norm(x)))``, each kind of them a function."""
    params, rows = [], ["x0 = silu(x)"]
    for i, kind in enumerate(kinds):
        params += [f'n{i}: f32[8] = weight("l.{i}.n")', f'w{i}: f32[8, 8] = weight("l.{i}.w")']
        layer = LAYER.replace("BLOCK", BLOCKS[kind]).format(i=i, n=i + 1)
        rows += [f"{row}  # l.{i}" for row in layer.split(" | ")]
    rows += [f"y = rms_norm(x{len(kinds)}, norm)  # norm", "return y"]
    text = f"def main(x: f32[T, 8], {', '.join(params)}, norm: f32[8] = weight('norm')):\n"
    m, _ = run_pipeline(parse(text + "\n".join(f"    {row}" for row in rows)), "outline")
    assert any(isinstance(s, Loop) for s in m.main.body)
    return m


@dataclass(frozen=True)
class Across(Pass):
    """The sum at the end of a layer with the norm at the start of the next."""

    def run(self, m):
        return apply_across(m, [AddRmsNorm()])


@dataclass(frozen=True)
class Inside(Pass):
    """The same in layers alone."""

    within: str | None = None

    def run(self, m):
        return apply(m, [AddRmsNorm()], within=self.within)


def rewritten(m, p):
    after, record = run_pipeline(m, [p])
    report = compare(m, after, p)
    assert report.ok, report
    assert parse(show(after)) == after
    return after, record.steps[0].changes


@pytest.mark.parametrize(
    ("kinds", "functions"),
    [
        (["mlp"] * 5, 2),
        (["mlp", "gelu"] * 4, 3),
        (["mlp"] * 3 + ["wide"] * 4, 3),
        (["mlp", "mlp", "gelu"] * 3, 3),
    ],
    ids=["one function in a loop", "alternating functions", "two kinds of layers", "a period of three"],
)
def test_every_sum_goes_into_the_norm_behind_it(kinds, functions):
    m = outlined(*kinds)
    assert not rewritten(m, Inside())[1].places
    after, changes = rewritten(m, Across())
    ops = [n.op.name for f in after.funcs.values() for n in f.nodes]
    assert len(changes) == len(kinds)
    assert "add" not in ops
    assert ops.count("rms_norm") == 1, "only the first norm has no sum before it"
    assert len(after.funcs) - 1 == functions
    assert any(isinstance(s, Loop) for s in after.main.body)


def test_the_layers_are_those_of_before_with_the_sum_at_their_head():
    after, _ = rewritten(outlined(*["mlp"] * 4), Across())
    assert [line.strip() for line in str(after.main).splitlines()[4:]] == [
        "x_1: f32[T, 8] = silu(x)",
        "x_2 = layer_0[0](x_1)  # l.{i}",
        "for i in range(1, 4):",
        "x_1, x_2 = layer_1[i](x_1, x_2)  # l.{i}",
        "x1, y = add_rms_norm(x_1, x_2, norm)  # -> f32[T, 8], f32[T, 8]  norm",
        "return y",
    ]
    assert [n.op.name for n in after.funcs["layer_1"].nodes] == ["add_rms_norm", "silu", "linear"]


def test_nothing_matches_and_nothing_moves():
    m = outlined(*["mlp"] * 4)
    first, _ = rewritten(m, Across())
    again, changes = rewritten(first, Across())
    assert not changes
    assert again.funcs.keys() == first.funcs.keys()
    assert str(again.main) == str(first.main)


def test_layers_with_caches_stay_apart_and_say_so():
    text = """def layer(
    x: f32[T, 8], seqs: seqs[T, S], kv: paged[f32, 16][P, 1, 8], w: f32[8] = weight("l.{i}.w")
):
    h = rms_norm(x, w)
    q = reshape(h, dims=(T, 1, 8))
    kv1 = kv_append(kv, q, q, seqs)
    a = paged_attention(q, kv1, seqs, scale=1.0)
    o = reshape(a, dims=(T, 8))
    y = add(x, o)
    return y, kv1

def main(x: f32[T, 8], seqs: seqs[T, S], kv: caches[2]):
    for i in range(2):
        x, kv[i] = layer[i](x, seqs, kv[i])
    return x, kv"""
    after, changes = rewritten(parse(text), Across())
    assert [str(miss) for miss in changes.near_misses] == [
        "main: caches and buffers are planned for its layers as they are: rewrite across them before kv-cache"
    ]
    assert list(after.funcs) == ["layer", "main"]


def test_fuel_counts_the_sums_and_the_rest_stays_a_loop():
    m = outlined(*["mlp"] * 6)
    with limited(3):
        after, changes = rewritten(m, Across())
    assert len(changes) == 3
    ops = [n.op.name for f in after.funcs.values() for n in f.nodes]
    assert {"add", "add_rms_norm"} <= set(ops)


def test_rules_can_be_kept_inside_of_layers_or_out_of_them():
    text = """def layer(x: f32[T, 8], w: f32[8] = weight("l.{i}.w")):
    s = add(x, x)
    n = rms_norm(s, w)
    y = mul(s, n)
    return y

def main(x: f32[T, 8], w: f32[8] = weight("w")):
    for i in range(3):
        x = layer[i](x)
    s = add(x, x)
    n = rms_norm(s, w)
    y = mul(s, n)
    return y"""
    assert [place.partition(".")[0] for place in rewritten(parse(text), Inside())[1].places] == [
        "layer",
        "main",
    ]
    assert rewritten(parse(text), Inside("layers"))[1].places == ["layer.n: AddRmsNorm"]
    assert rewritten(parse(text), Inside("main"))[1].places == ["main.n: AddRmsNorm"]
