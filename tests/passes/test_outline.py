"""outline on random stacks of layers: the numbers stay, and inline gives the program back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.ir.graph import Loop, Module, Node
from irloom.ir.interp import Interpreter, cache_types
from irloom.ir.parse import parse
from irloom.ir.show import show
from irloom.ir.verify import verify
from irloom.passes import run_pipeline
from irloom.passes.sample import BATCHES, inputs, random_weights

ATTEND = (
    "h = rms_norm({x}, n{i})",
    "q = reshape(h, dims=(T, 2, 4))",
    "u = reshape(a, dims=(T, 8))",
    "s = linear(u, w{i})",
    "y = add({x}, s)",
)
KINDS = {
    "mlp": ("h = rms_norm({x}, n{i})", "u = linear(h, w{i})", "s = silu(u)", "y = add({x}, s)"),
    "narrow": ("h = rms_norm({x}, n{i})", "u = linear(h, w{i})", "s = gelu(u)", "y = add({x}, s)"),
    "post": ("u = linear({x}, w{i})", "h = rms_norm(u, n{i})", "y = add({x}, h)"),
    "sliding": (*ATTEND[:2], "a = attention(q, q, q, seqs, scale=0.5, window=3)", *ATTEND[2:]),
    "full": (*ATTEND[:2], "a = attention(q, q, q, seqs, scale=0.5)", *ATTEND[2:]),
    "shares": (*ATTEND[:2], "a = attention(q, {k}, {k}, seqs, scale=0.25)", *ATTEND[2:]),
    "pair": ("r, h = add_rms_norm({x}, {z}, n{i})", "u = linear(h, w{i})", "y = silu(u)"),
    "table": ("h = mul({x}, cos)", "u = linear(h, w{i})", "v = mul(u, n{i})", "y = add({x}, v)"),
}  # fmt: skip
"""The nodes of a layer of each kind; `{x}` is what the last layer made, `{z}` what went past it, `{k}` the
keys of the last layer with full attention."""


def program(kinds: list[str], located: bool, offset: int = 0) -> str:
    """A flat program: layer `i` is of kind `kinds[i]`."""
    params, rows = [], ["x = embedding(ids, table)", "p = positions(seqs)", "f = cast(p, to=f32)"]
    rows += ["r = reshape(f, dims=(T, 1))", "cos = cos(r)"]
    if located:
        rows = [f"{row}  # model.embed m.py:1" for row in rows]
    x, z, k = "x", "x", "q"
    for i, kind in enumerate(kinds, offset):
        params.append(f'n{i}: f32[8] = weight("model.layers.{i}.n.weight")')
        params.append(f'w{i}: f32[8, 8] = weight("model.layers.{i}.w.weight")')
        names: dict[str, str] = {}
        for row in KINDS[kind]:
            left, _, right = row.format(x=x, z=z, k=k, i=i).partition(" = ")
            for name in left.split(", "):
                names[name] = f"{name}_{i}"
            call, _, given = right.partition("(")
            operands = ", ".join(names.get(a) or a for a in given.removesuffix(")").split(", "))
            made = ", ".join(names[name] for name in left.split(", "))
            comment = ["-> f32[T, 8], f32[T, 8]"] if "," in left else []
            comment += [f"model.layers.{i} m.py:2"] if located else []
            rows.append(f"{made} = {call}({operands})" + (f"  # {'  '.join(comment)}" if comment else ""))
        x, z, k = names["y"], names.get("r", x), names["q"] if kind == "full" else k
    rows.append(
        (f"last = add({x}, {z})" if "pair" in kinds else f"last = neg({x})")
        + ("  # model.norm m.py:3" if located else "")
    )
    body = "".join(f"    {row}\n" for row in rows)
    given = ", ".join(
        ['ids: i32[T], seqs: seqs[T, S], table: f32[16, 8] = weight("model.embed.weight")', *params]
    )
    return f"def main({given}):\n{body}    return last\n"


def same_numbers(a: Module, b: Module) -> None:
    """Bitwise: the same ops run in the same order."""
    weights = random_weights([a, b])
    for batch in BATCHES:
        given = inputs([a, b], batch)
        x, y = (Interpreter(m, weights)(*(given[p.name] for p in m.main.data)) for m in (a, b))
        assert all(p.equal(q) for p, q in zip(x, y, strict=True))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(list(KINDS)), min_size=2, max_size=9), st.booleans(), st.sampled_from([0, 3]))
def test_outline_and_back(kinds, located, offset):
    flat = parse(program(kinds, located, offset))
    verify(flat)
    outlined, _ = run_pipeline(flat, "outline")
    assert parse(show(outlined)) == outlined
    same_numbers(flat, outlined)
    back, _ = run_pipeline(outlined, "inline")
    assert list(back.funcs) == ["main"]
    same_numbers(flat, back)
    assert sorted((n.op.name, n.loc) for n in back.main.nodes) == sorted(
        (n.op.name, n.loc) for n in flat.main.nodes
    )
    assert {p.weight for p in back.main.weights} == {p.weight for p in flat.main.weights}
    assert {n.made_by for m in (outlined, back) for f in m.funcs.values() for n in f.nodes} == {""}, "copies"


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from(["mlp", "narrow", "post", "sliding", "full"]), min_size=1, max_size=5),
    st.integers(2, 4),
    st.integers(0, 4),
)
def test_a_period_is_found(period, times, rest):
    """A pattern that repeats is a loop over it; there are as many functions as kinds of layer."""
    kinds = period * times + period[: min(rest, len(period) - 1)]
    m, _ = run_pipeline(parse(program(kinds, True)), "outline")
    assert len(m.funcs) == 1 + len(set(kinds))
    calls = sum(len(s.body) if isinstance(s, Loop) else 1 for s in m.main.body if not isinstance(s, Node))
    assert calls <= len(period) + min(rest, len(period) - 1)
    assert len(list(m.calls())) == len(kinds)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(list(KINDS)), min_size=2, max_size=6), st.booleans())
def test_caches_of_outlined_and_flat_programs_agree(kinds, outlined):
    m = parse(program(kinds, True))
    m, _ = run_pipeline(m, "outline" if outlined else "")
    cached, _ = run_pipeline(m, "kv-cache(page=4)")
    assert parse(show(cached)) == cached
    weights = random_weights([m, cached])
    for batch in BATCHES:
        given = inputs([m, cached], batch)
        x, y = (Interpreter(p, weights)(*(given[a.name] for a in p.main.data)) for p in (m, cached))
        assert x[0].allclose(y[0], atol=1e-5)


def test_layers_that_share_keys_and_values_share_a_cache():
    """In functions and in a flat program; 35 layers, of which 15 keep nothing, as Gemma 3n has them."""
    kinds = (["sliding"] * 4 + ["full"]) * 4 + ["shares"] * 15
    m, _ = run_pipeline(parse(program(kinds, True)), "outline, kv-cache(page=4)")
    flat, _ = run_pipeline(m, "inline")
    assert [len(cache_types(x)) for x in (m, flat)] == [20, 20]
    assert m.plan().kv.token_bytes == flat.plan().kv.token_bytes == 20 * 2 * 4 * 4  # keys are values
    weights, outputs = random_weights([m, flat]), []
    for p in (m, flat):
        given = inputs([m], BATCHES[2])
        caches = [given["kv"]] if p is m else given["kv"]
        outputs.append(Interpreter(p, weights)(given["ids"], given["seqs"], *caches)[0])
    assert outputs[0].equal(outputs[1])


def test_eighty_layers_are_two_functions():
    """The size of a 70B model: it prints on one screen."""
    m = parse(program((["sliding"] * 3 + ["full"]) * 20, True))
    assert len(m.main.body) > 480
    outlined, record = run_pipeline(m, "outline, kv-cache")
    assert list(outlined.funcs) == ["layer_sliding", "layer_full", "main"]
    assert len(show(outlined).splitlines()) < 60
    sliding, full = record.steps[0].changes.places
    assert sliding.startswith("main.layer_sliding: 6 nodes, layers 0-2, 4-6, 8-10")
    assert full.startswith("main.layer_full: 6 nodes, layers 3, 7, 11")


@pytest.mark.parametrize("kinds", [["mlp"], ["mlp", "post"]])
def test_one_layer_of_a_kind_is_a_function_only_beside_others(kinds):
    m, _ = run_pipeline(parse(program(kinds, True)), "outline")
    assert len(m.funcs) == (1 if len(kinds) == 1 else 3)
