"""plan-memory on random programs: no two values that live at the same time share a buffer."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.ir.buffers import storage
from irloom.ir.dims import covers, evaluate, sym
from irloom.ir.graph import Module, Node
from irloom.ir.parse import parse
from irloom.ir.show import show
from irloom.passes import run_pipeline

T, S = sym("T"), sym("S")


@st.composite
def functions(draw, name, head, call=None):
    """A random function as text: values of several sizes and elements, views, values that live long."""
    rows, values = [], ["x"]
    for i in range(draw(st.integers(1, 14))):
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        new = [
            f"v{i} = silu({a})",
            f"v{i} = add({a}, {b})",
            f"c{i} = cast({a}, to=f16)\n    v{i} = cast(c{i}, to=f32)",
            f"c{i} = reshape({a}, dims=(T, 2, 4))\n    v{i} = reshape(c{i}, dims=(T, 8))",
            f"c{i} = reshape({a}, dims=(T, 2, 4))\n    n{i} = neg(c{i})\n    v{i} = silu({b})",
            f"c{i} = reshape({a}, dims=(8, T))\n    v{i} = reshape(c{i}, dims=(T, 8))",
            f"p{i}, q{i} = split({a}, dim=1, sizes=(4, 4))\n    v{i} = concat(q{i}, p{i}, dim=1)",
            f"c{i} = slice({a}, dim=1, start=2, stop=6)\n    v{i} = concat(c{i}, c{i}, dim=1)",
            f"c{i} = slice({a}, dim=1, stop=4)\n    r{i} = reshape(c{i}, dims=(4, T))\n    v{i} = exp({b})",
            f"c{i} = last_rows({a}, seqs)\n    s{i} = silu(c{i})\n    v{i} = exp({a})",
            f"v{i} = {call}({a}, seqs)" if call else f"v{i} = exp({a})",
        ]
        rows.append(draw(st.sampled_from(new)))
        values.append(f"v{i}")
    loop = (
        ""
        if not call or draw(st.booleans())
        else f"    for i in range(3):\n        {values[-1]} = {call}({values[-1]}, seqs)\n"
    )
    body = "".join(f"    {row}\n" for row in rows)
    end = f"    y = sigmoid({draw(st.sampled_from(values))})\n    return y, {values[-1]}\n"
    return f"def {name}{head}:\n{body}{loop}{end}"


@st.composite
def programs(draw):
    head = "(x: f32[T, 8], seqs: seqs[T, S])"
    layer = draw(functions("layer", head))
    layer = re.sub(r"return y, \w+", "return y", layer)
    return f"{layer}\n{draw(functions('main', head, 'layer'))}"


@settings(deadline=None, max_examples=60)
@given(programs())
def test_no_two_live_values_share_a_buffer(text):
    """Run every function with its buffers as memory: each read finds what was written."""
    m, _ = run_pipeline(parse(text), "plan-memory")
    assert parse(show(m)) == m
    memory: dict[str, str] = {}
    for f in m.funcs.values():
        memory.clear()
        root = storage(f)
        stored: dict[str, str] = {}
        for s in f.body:
            for v in s.values:
                if v.buffer:
                    assert memory[v.buffer] == stored[v.name], f"{v.name} was overwritten\n{show(m)}"
            if not isinstance(s, Node):
                for b in writes(m):
                    memory[b] = f"{s.results[0].name} ran"
                continue
            for r in s.results:
                if r.buffer:
                    view = root[r] is not r
                    assert view or r.buffer not in [v.buffer for v in s.values]
                    stored[r.name] = stored[root[r].name] if view else f"{f.name}.{r.name}"
                    memory[r.buffer] = stored[r.name]
                    assert covers(m.buffers[r.buffer], r.type.nbytes)


def writes(m: Module) -> set[str]:
    return {r.buffer for s in m.funcs["layer"].body for r in s.results if r.buffer}


@settings(deadline=None, max_examples=60)
@given(programs())
def test_a_plan_needs_less_than_every_value_apart_and_at_least_the_peak(text):
    m, _ = run_pipeline(parse(text), "plan-memory")
    env = {"T": 64, "S": 64}
    total = sum(evaluate(size, env) for size in m.buffers.values())
    every = sum(
        evaluate(r.type.nbytes, env) for f in m.funcs.values() for s in f.body for r in s.results if r.buffer
    )
    assert total <= every
    again, _ = run_pipeline(m, "plan-memory")
    assert again.buffers == m.buffers


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_covers_is_never_wrong(a, b, c, d):
    left, right = T * a + S * b + c, T * b + S * d + a
    if covers(left, right):
        sizes = [{"T": t, "S": s} for t in (1, 2, 9) for s in (1, 3, 8)]
        assert all(evaluate(left, env) >= evaluate(right, env) for env in sizes)
