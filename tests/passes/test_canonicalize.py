"""Random programs: canonicalize changes no number, leaves nothing to do, and its text reads back."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.ir.checkpoint import RandomCheckpoint
from irloom.ir.elem import ELEMS
from irloom.ir.parse import parse
from irloom.ir.show import show
from irloom.passes import run_pipeline
from irloom.passes.canonicalize import Canonicalize
from irloom.passes.check import compare

FLAT, HEADS, TURNED = "T, 8", "T, 2, 4", "4, T, 2"
LINES = [
    "neg({a})", "abs({a})", "relu({a})", "floor({a})", "tanh({a})", "cast({a}, to=f32)", "cast({a}, to=bf16)",
    "add({a}, {b})", "mul({b}, {a})", "sub({a}, {b})", "maximum({a}, {b})", "minimum({b}, {a})",
    "sub({a}, {n})", "mul({n}, {a})", "div({a}, {n})", "maximum({a}, {n})", "minimum({n}, {a})",
    "add({n}, {a})", "add({a}, 0)", "mul({a}, 1.0)", "mul({a}, v)", "add(v, {a})", "mul({a}, f)",
    "mul({a}, g)", "slice({a}, dim=1)", "pad({a}, dim=1)",
]  # fmt: skip
"""Ops that give a tensor the dims it has, by whatever name those go."""

MOVES = [
    (FLAT, HEADS, "reshape({a}, dims=(T, 2, 4))"),
    (HEADS, FLAT, "reshape({a}, dims=(T, 8))"),
    (HEADS, TURNED, "permute({a}, dims=(2, 0, 1))"),
    (TURNED, HEADS, "permute({a}, dims=(1, 2, 0))"),
    (HEADS, HEADS, "expand({a}, dims=(T, 2, 4))"),
    (FLAT, FLAT, "permute({a}, dims=(0, 1))"),
    (HEADS, FLAT, "reshape({a}, dims=(T, 8))"),
]
SEVERAL = [
    "p{i}, q{i} = split({a}, dim=1, sizes=(4, 4))\n    v{i} = concat(p{i}, q{i}, dim=-1)",
    "p{i}, q{i} = split({a}, dim=1, sizes=(4, 4))\n    v{i} = concat(q{i}, p{i}, dim=-1)",
    "p{i} = gt({n}, {a})\n    q{i} = logical_not(p{i})\n    v{i} = where(q{i}, {a}, {b})",
    "p{i} = gt({a}, {b})\n    q{i} = logical_and(p{i}, p{i})\n    v{i} = where(q{i}, {a}, {a})",
    "p{i} = concat({a}, {a}, dim=1)\n    v{i} = slice(p{i}, dim=1, start=8, stop=16)",
]
HEAD = """# irloom 1
T: dim[1, 64]
c0 = const(f32[4], "AACAPwAAAEAAAEBAAACAQA==")

def main(x: f32[T, 8], z: f32[T, 2, 4], u: f32[4, T, 2], w: f32[1] = weight("w"), c: f32[4] = const("c0")):
    v = exp(w)
    c1 = mul(c, 0.5)
    c2 = amax(c1)
    f = sqrt(c2)
    g1 = full(dims=(1,), value=3.0, elem=f32)
    g2 = tanh(g1)
    g = mul(g2, 0.5)
"""


@st.composite
def programs(draw):
    rows, values = [], {FLAT: ["x"], HEADS: ["z"], TURNED: ["u"]}
    for i in range(draw(st.integers(1, 14))):
        dims = draw(st.sampled_from([FLAT, HEADS, HEADS, TURNED]))
        n = draw(st.sampled_from([2.0, 0.5, 3.0, -1, 0.3]))
        a, b = draw(st.sampled_from(values[dims])), draw(st.sampled_from(values[dims]))
        kind = draw(st.integers(0, 9))
        if kind == 0 and dims == FLAT:
            rows.append(draw(st.sampled_from(SEVERAL)).format(a=a, b=b, n=n, i=i))
        elif kind < 5:
            _, dims, line = draw(st.sampled_from([m for m in MOVES if m[0] == dims]))
            rows.append(f"v{i} = {line.format(a=a)}")
        else:
            rows.append(f"v{i} = {draw(st.sampled_from(LINES)).format(a=a, b=b, n=n)}")
        values[dims] = [*values[dims], f"v{i}"]
    names = [v for vs in values.values() for v in vs]
    returned = ", ".join(draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)))
    return HEAD + "    " + "\n    ".join(rows) + f"\n    return {returned}\n"


@settings(max_examples=60, deadline=None)
@given(programs())
def test_random_programs(text):
    before = parse(text)
    after, _ = run_pipeline(before, "canonicalize")
    report = compare(before, after, Canonicalize())
    assert report.max_abs == 0, str(after)
    assert parse(show(after)) == after
    assert len(Canonicalize().run(after)) == 0, str(after)


def test_results_are_equal_to_the_last_bit_in_two_bytes():
    text = """def main(x: bf16[T, 8]):
    a = mul(x, 0.5)
    b = mul(a, 0.3)
    c = sub(b, 0.1)
    d = neg(c)
    y = add(x, d)
    return y"""
    before = parse(text)
    after, _ = run_pipeline(before, "canonicalize")
    assert len(after.main.body) == 3
    assert compare(before, after, Canonicalize()).max_abs == 0
    assert after.main.returns[0].type.plain.torch == torch.bfloat16


def test_an_expression_rounds_as_the_program_did_whatever_the_file_stores():
    """A norm of one plus its weight, stored in two bytes and computed in four."""
    text = """def main(x: f32[T, 8], w: f32[8] = weight("w")):
    a = add(w, 1)
    y = mul(x, a)
    return y"""
    before = parse(text)
    after, _ = run_pipeline(before, "canonicalize")
    stored = RandomCheckpoint(0, {"w": (8,)}, ELEMS["bf16"])
    assert len(after.main.nodes) == 1
    assert compare(before, after, Canonicalize(), stored).max_abs == 0
