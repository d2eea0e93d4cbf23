"""Random programs: canonicalize changes no number, leaves nothing to do, and its text reads back."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.ir.parse import parse
from irloom.ir.show import show
from irloom.passes import run_pipeline
from irloom.passes.canonicalize import Canonicalize
from irloom.passes.check import compare

LINES = [
    "neg({a})",
    "add({a}, {b})",
    "mul({b}, {a})",
    "sub({a}, {n})",
    "mul({n}, {a})",
    "div({a}, {n})",
    "add({a}, 0)",
    "mul({a}, 1.0)",
    "tanh({a})",
    "cast({a}, to=f32)",
    "reshape({a}, dims=(T, 8))",
    "permute({a}, dims=(0, 1))",
    "slice({a}, dim=1)",
    "expand({a}, dims=(T, 8))",
    "maximum({a}, {n})",
]


@st.composite
def programs(draw):
    rows, names = [], ["x", "z"]
    for i in range(draw(st.integers(1, 12))):
        a, b = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            rows.append(f"p{i}, q{i} = split({a}, dim=1, sizes=(4, 4))")
            rows.append(f"v{i} = concat({draw(st.sampled_from([f'p{i}, q{i}', f'q{i}, p{i}']))}, dim=-1)")
        elif kind == 1:
            rows.append(f"r{i} = reshape({a}, dims=(T, 2, 4))")
            rows.append(f"v{i} = reshape(r{i}, dims=(T, 8))")
        else:
            n = draw(st.sampled_from([2.0, 0.5, 3.0, -1, 0.3]))
            rows.append(f"v{i} = {draw(st.sampled_from(LINES)).format(a=a, b=b, n=n)}")
        names.append(f"v{i}")
    returned = ", ".join(draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)))
    return "def main(x: f32[T, 8], z: f32[T, 8]):\n    " + "\n    ".join(rows) + f"\n    return {returned}\n"


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
