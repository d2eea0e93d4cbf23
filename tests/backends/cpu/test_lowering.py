"""Lowered programs against the interpreter: written ones for what is tricky, random ones for the rest."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irloom.backends.core import quiet
from irloom.backends.cpu.backend import extra, library
from irloom.backends.cpu.lower import lower
from irloom.backends.cpu.runner import Runner
from irloom.backends.cpu.step import Step
from irloom.backends.cpu.weights import read_weights, write_weights
from irloom.ir.checkpoint import RandomCheckpoint
from irloom.ir.errors import IRError
from irloom.ir.graph import Module
from irloom.ir.interp import Interpreter
from irloom.ir.parse import parse
from irloom.ir.seqs import Seqs
from irloom.passes import run_pipeline
from irloom.runtime.core import Batch

DIMS = {
    "embed": (50, 16),
    "ln": (16,),
    "w": (16, 16),
    "up": (64, 16),
    "down": (16, 32),
    "bias": (16,),
    "wide": (50,),
    "k": (8,),
    "square": (8, 8),
    "router": (5, 16),
    "experts.up": (5, 24, 16),
    "experts.down": (5, 16, 12),
    "experts.bias": (5, 24),
}
CHECKPOINT = RandomCheckpoint(0, {**DIMS, **{f"l.{i}.{n}": d for i in range(6) for n, d in DIMS.items()}})
LENGTHS = [3, 1, 5]


def compare(m: Module, *, fallbacks: set[str] | None = None) -> str:
    """Run ``m`` both ways on the same tokens, and give the program's text."""
    ids = torch.randint(0, 50, (sum(LENGTHS),), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    seqs = Seqs.of(LENGTHS)
    wanted = Interpreter(m, CHECKPOINT)(ids, seqs)[0]
    program, kernels, step = lower(m), library(quiet), Step((), 16, 4, 64)
    if fallbacks is not None:
        assert set(program.fallbacks) == fallbacks
    arrays = (seqs.positions.numpy(), seqs.starts.numpy(), seqs.context.numpy())
    step.load(Batch(ids.numpy(), *arrays, (), (None,) * len(LENGTHS)))
    with TemporaryDirectory() as folder:
        text, weights = Path(folder) / "lowered.py", Path(folder) / "weights.safetensors"
        text.write_text(program.text)
        write_weights(weights, program, m, CHECKPOINT, quiet)
        bound = read_weights(weights, program, int8_activations=False)
        told = Runner(text, kernels.raw, step, extra(kernels, program), bound, {}).run().clone()
        again = Runner(text, kernels.raw, step, extra(kernels, program), bound, {})
        again.run()
    torch.testing.assert_close(told, wanted.float(), atol=2e-5, rtol=2e-5)
    assert torch.equal(again.run(), told), "a second step finds everything as the first did"
    return program.text


MAIN = """
def main(ids: i32[T], seqs: seqs[T, S], embed: f32[50, 16] = weight("embed"), w: f32[16, 16] = weight("w")):
    x = embedding(ids, embed)
"""
LAYER = """
def layer(x: f32[T, 16], y: f32[T, 16], w: f32[16, 16] = weight("l.{i}.w")):
    a = linear(x, w)
    b = add(a, y)
    c = silu(b)
"""


def test_a_chain_of_elementwise_ops_is_one_kernel():
    text = compare(
        parse(MAIN + "    a = mul(x, 2.0)\n    b = tanh(a)\n    c = add(b, x)\n    y = exp(c)\n    return y"),
        fallbacks=set(),
    )
    assert text.count("fused_") == 1


def test_a_value_with_two_readers_is_stored_once():
    compare(
        parse(MAIN + "    a = exp(x)\n    b = neg(a)\n    c = mul(a, b)\n    y = linear(c, w)\n    return y"),
        fallbacks=set(),
    )


def test_a_column_and_a_row_broadcast_in_a_chain():
    more = "    r = mean(x)\n    c = sub(x, r)\n    y = mul(c, ln)\n    return y"
    main = MAIN.replace('w: f32[16, 16] = weight("w")', 'ln: f32[16] = weight("ln")')
    compare(parse(main + more), fallbacks=set())


def test_heads_broadcast_in_a_chain():
    """By one entry a head, by one head for all; by a weight of each kind; by both at once."""
    main = MAIN.replace('w: f32[16, 16] = weight("w")', 'ln: f32[16] = weight("ln"), k: f32[8] = weight("k")')
    more = """
    h = reshape(x, dims=(T, 2, 8))
    r = mean(h)
    a = sub(h, r)
    b = mul(a, k)
    c = split(x, dim=1, sizes=(8, 8))
    one = reshape(c[0], dims=(T, 1, 8))
    d = mul(b, one)
    g = reshape(ln, dims=(2, 8))
    e = add(d, g)
    f = softplus(e)
    two = amax(h)
    z = add(one, two)
    s = mul(f, z)
    y = reshape(s, dims=(T, 16))
    return y"""
    text = compare(parse(main + more.replace("c = split", "c0, c1 = split").replace("c[0]", "c0")))
    assert text.count("parts=2") == 3


def test_dims_that_no_cut_separates_are_left_to_the_body():
    more = """
    a = reshape(x, dims=(T, 2, 2, 4))
    b = amax(a, dim=2)
    c = sub(a, b)
    y = reshape(c, dims=(T, 16))
    return y"""
    compare(parse(MAIN + more), fallbacks={"amax", "sub"})


@pytest.mark.parametrize(
    "act", [None, "gelu", "gelu_tanh", "silu", "relu2", "quick_gelu", "mish", "softplus"]
)
def test_a_linear_finishes_its_result(act):
    more = f"""
    a = linear_act(x, w, None, x)
    b = linear_act(a, w, None, a, act={act!r}, scale=0.5, softcap=3.0)
    h = reshape(b, dims=(T, 2, 8))
    g = reshape(x, dims=(T, 2, 8))
    c = linear_act(h, square, k, g, act={act!r})
    y = reshape(c, dims=(T, 16))
    return y"""
    main = MAIN.replace("w: f32", 'k: f32[8] = weight("k"), square: f32[8, 8] = weight("square"), w: f32')
    text = compare(parse(main + more), fallbacks=set())
    assert "residual=x" in text


def test_the_pieces_of_a_split_are_read_in_place():
    main = MAIN.replace(
        'w: f32[16, 16] = weight("w")', 'up: f32[64, 16] = weight("up"), down: f32[16, 32] = weight("down")'
    )
    more = """
    u = linear(x, up)
    g, h = split(u, dim=1, sizes=(32, 32))
    s = silu_mul(g, h)
    y = linear(s, down)
    return y"""
    text = compare(parse(main + more), fallbacks=set())
    assert "stride=64" in text


def test_pieces_within_heads_are_copies():
    more = """
    q = reshape(x, dims=(T, 2, 8))
    a, b = split(q, dim=2, sizes=(4, 4))
    c = concat(b, a, dim=2)
    y = reshape(c, dims=(T, 16))
    return y"""
    compare(parse(MAIN + more), fallbacks=set())


def test_entries_of_a_row_move_in_one_call():
    """Turned, every second one, halves in turn, and one head for all."""
    more = """
    q = reshape(x, dims=(T, 2, 2, 4))
    p = permute(q, dims=(0, 3, 1, 2))
    e = slice(p, dim=3, start=1, step=2)
    o = slice(p, dim=3, step=2)
    c = concat(o, e, o, dim=3)
    h = slice(c, dim=2, start=1)
    g = expand(h, dims=(T, 4, 2, 3))
    s = exp(g)
    a, b = split(s, dim=3, sizes=(1, 2))
    y0 = reshape(a, dims=(T, 8))
    y1 = reshape(b, dims=(T, 16))
    y = concat(y0, y1, dim=1)
    return y"""
    compare(parse(MAIN + more), fallbacks=set())


def test_entries_that_move_along_four_dims_are_left_to_the_body():
    more = """
    q = reshape(x, dims=(T, 2, 2, 2, 2))
    p = permute(q, dims=(0, 4, 3, 2, 1))
    y = reshape(p, dims=(T, 16))
    return y"""
    compare(parse(MAIN + more), fallbacks={"permute"})


def test_sums_go_along_any_dim_of_a_row():
    more = """
    q = reshape(x, dims=(T, 2, 2, 4))
    a = sum(q, dim=2, keep=False)
    b = mean(q, dim=1)
    c = mean(a, keep=False)
    d = weighted_sum(a, c)
    e = reshape(b, dims=(T, 8))
    y = concat(d, e, dim=1)
    return y"""
    compare(parse(MAIN + more), fallbacks=set())


def test_entries_at_computed_places_are_picked_in_kernels():
    more = """
    q = reshape(x, dims=(T, 2, 8))
    v, i = topk(q, k=3)
    n = neg(q)
    g = gather(n, i)
    one = slice(i, dim=1, stop=1)
    same = expand(one, dims=(T, 2, 3))
    h = gather(q, same)
    s = add(g, h)
    y = reshape(s, dims=(T, 6))
    return y"""
    compare(parse(MAIN + more), fallbacks=set())


def test_a_curve_with_learned_parameters_is_part_of_a_chain():
    main = MAIN.replace('w: f32[16, 16] = weight("w")', 'ln: f32[16] = weight("ln")')
    more = """
    h = full(dims=(T, 16), value=0.5, elem=f32)
    a = sum(h)
    z = mul(a, -1e-06)
    b = xielu(x, a, ln, ln, z)
    y = add(b, h)
    return y"""
    compare(parse(main + more), fallbacks=set())


@pytest.mark.parametrize("options", ["bf16", "f16, override='linear=f32'", "bf16, skip='rms_norm'"])
def test_what_is_not_in_four_bytes_runs_its_bodies(options):
    """Kernels compute in f32; a program in two bytes rounds where it says it does."""
    more = """
    a = linear(x, w)
    b = silu(a)
    c = add(b, x)
    d = rms_norm(c)
    y = linear(d, w)
    return y"""
    module, _ = run_pipeline(parse(MAIN + more), f"precision({options})")
    assert 'reference("add"' in compare(module)


def test_functions_near_zero_keep_their_digits_in_a_chain():
    more = """
    a = mul(x, 1e-06)
    b = expm1(a)
    c = log1p(b)
    d = tanh(c)
    y = mul(d, 1000000.0)
    return y"""
    assert compare(parse(MAIN + more), fallbacks=set()).count("fused_") == 1


def test_joined_columns_are_copied_in_place():
    more = """
    a, b = split(x, dim=1, sizes=(6, 10))
    q = reshape(x, dims=(T, 2, 8))
    h = concat(q, q, dim=1)
    r = reshape(h, dims=(T, 32))
    c = concat(b, r, a, b, dim=-1)
    d, y = split(c, dim=1, sizes=(42, 16))
    return y"""
    compare(parse(MAIN + more), fallbacks=set())


def test_rows_may_be_a_multiple_of_the_tokens():
    """Heads as rows: twice the tokens, in this step and in the next."""
    main = MAIN.replace('w: f32[16, 16] = weight("w")', 'k: f32[8] = weight("k")')
    more = """
    q = reshape(x, dims=(2*T, 8))
    n = rms_norm(q, k)
    s = silu(n)
    m = mean(s)
    c = sub(s, m)
    y = reshape(c, dims=(T, 16))
    return y"""
    compare(parse(main + more), fallbacks=set())


def test_heads_are_normalized_one_by_one():
    main = MAIN.replace('w: f32[16, 16] = weight("w")', 'k: f32[8] = weight("k")')
    more = """
    q = reshape(x, dims=(T, 2, 8))
    n = rms_norm(q, k)
    l = layer_norm(n, k)
    y = reshape(l, dims=(T, 16))
    return y"""
    compare(parse(main + more), fallbacks=set())


def test_heads_go_through_one_weight_one_by_one():
    main = MAIN.replace('w: f32[16, 16] = weight("w")', 'k: f32[8, 8] = weight("square")')
    more = """
    q = reshape(x, dims=(T, 2, 8))
    p = linear(q, k)
    r = add(p, q)
    y = reshape(r, dims=(T, 16))
    return y"""
    compare(parse(main + more), fallbacks=set())


ROUTER = """
def main(
    ids: i32[T], seqs: seqs[T, S],
    embed: f32[50, 16] = weight("embed"), router: f32[5, 16] = weight("router"),
    up: f32[5, 24, 16] = weight("experts.up"), down: f32[5, 16, 12] = weight("experts.down"),
    bias: f32[5, 24] = weight("experts.bias"),
):
    x = embedding(ids, embed)
    r = linear(x, router)
    p = softmax(r)
    w, i = topk(p, k=3)
    total = sum(w)
    scaled = div(w, total)
"""


@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_tanh"])
def test_experts_with_their_router_are_kernels(act):
    compare(
        parse(f"{ROUTER}    y = moe(x, i, scaled, up, down, bias, act={act!r})\n    return y"),
        fallbacks=set(),
    )


def test_products_with_experts_are_kernels():
    """A row per token, then a row per choice."""
    more = """
    h = expert_linear(x, i, up, bias)
    g = slice(h, dim=2, start=0, stop=12)
    c = minimum(g, 0.5)
    o = expert_linear(c, i, down)
    t = permute(o, dims=(0, 2, 1))
    y = sum(t, keep=False)
    return y"""
    compare(parse(ROUTER + more), fallbacks=set())


def test_choices_within_groups_are_kernels():
    more = """
    q = reshape(x, dims=(T, 4, 4))
    v, j = topk(q, k=2)
    s = sum(v, keep=False)
    z = reshape(v, dims=(T, 8))
    y = concat(s, z, dim=1)
    return y"""
    compare(parse(MAIN + more), fallbacks=set())


@pytest.mark.parametrize("name", ["rope", "copy", "T1", "embedding", "linear", "rows", "layer"])
def test_a_value_may_be_called_like_a_kernel(name):
    compare(
        parse(MAIN + f"    {name} = exp(x)\n    y = linear({name}, w)\n    z = add(y, {name})\n    return z")
    )


def test_a_norm_without_a_weight_is_not_lost_in_what_follows_it():
    main = MAIN.replace('w: f32[16, 16] = weight("w")', 'ln: f32[16] = weight("ln")')
    more = """
    n = rms_norm(x)
    a = add(n, x)
    m = rms_norm(a)
    s, z = add_rms_norm(x, m, ln)
    p = positions(seqs)
    h = reshape(z, dims=(T, 2, 8))
    u = rms_norm(h)
    r = rope(u, p)
    f = reshape(r, dims=(T, 16))
    y = add(f, s)
    return y"""
    compare(parse(main + more), fallbacks=set())


def test_norms_on_both_sides_of_a_residual_sum_are_one_kernel_with_it():
    """With weights and without; and a norm before the last sum of a layer."""
    main = MAIN.replace(
        'w: f32[16, 16] = weight("w")', 'ln: f32[16] = weight("ln"), post: f32[16] = weight("bias")'
    )
    more = """
    a = exp(x)
    s, n = add_rms_norm(x, a, ln, post, eps=0.001, inner_eps=0.1)
    t, m = add_rms_norm(s, n, inner_eps=0.1)
    u, l = add_layer_norm(t, m)
    v = rms_norm_add(u, l, post)
    y = rms_norm_add(v, s)
    return y"""
    text = compare(parse(main + more), fallbacks=set())
    assert text.count("rms_norm(") == 5


def test_a_weight_may_have_several_biases_and_none():
    main = MAIN.replace(
        'w: f32[16, 16] = weight("w")',
        """
    w: f32[16, 16] = weight("w"), bias: f32[16] = weight("bias"), ln: f32[16] = weight("ln")""",
    )
    more = """
    a = linear(x, w, bias)
    b = linear(a, w)
    c = linear(b, w, ln)
    d = linear(c, w, bias)
    return d"""
    text = compare(parse(main + more), fallbacks=set())
    assert text.count("packed(") == 4, "the table, and the matrix with each bias"


def test_a_table_may_be_the_head_with_a_bias():
    main = MAIN.replace('w: f32[16, 16] = weight("w")', 'bias: f32[50] = weight("wide")')
    compare(parse(main + "    y = linear(x, embed, bias)\n    return y"), fallbacks=set())


def test_tokens_need_not_come_first():
    """What has no rows is computed by bodies of ops, and what comes of it is rows again."""
    more = """
    q = reshape(x, dims=(1, T, 16))
    h = reshape(q, dims=(1, T, 2, 8))
    k = permute(h, dims=(0, 2, 1, 3))
    e = exp(k)
    f = full(dims=(1, 2, T, 4), value=0.5, elem=f32)
    c = concat(e, f, dim=-1)
    a, b = split(c, dim=-1, sizes=(8, 4))
    s = slice(c, dim=1, start=1, stop=2)
    z = slice(s, dim=-1, start=0, stop=8)
    g = add(a, z)
    p = permute(g, dims=(0, 2, 1, 3))
    r = reshape(p, dims=(T, 16))
    y = linear(r, w)
    return y"""
    compare(parse(MAIN + more), fallbacks={"permute", "exp", "full", "concat", "split", "slice", "add"})


def test_rotation_by_default_and_by_given_frequencies():
    more = """
    p = positions(seqs)
    q = reshape(x, dims=(T, 2, 8))
    a = rope(q, p, theta=500.0)
    b = rope(a, p, rotary=4, interleaved=True, scale=1.5)
    y = reshape(b, dims=(T, 16))
    return y"""
    compare(parse(MAIN + more), fallbacks=set())


def test_functions_may_take_and_give_tensors_without_rows():
    layer = LAYER.replace("x: f32[T, 16], y: f32[T, 16]", "x: f32[1, T, 16], y: f32[1, T, 16]")
    more = """
    h = reshape(x, dims=(1, T, 16))
    for i in range(3):
        h = layer[i](h, h)
    g = layer[4](h, h)
    s = sub(g, h)
    y = reshape(s, dims=(T, 16))
    return y"""
    compare(parse(layer + "    return c\n" + MAIN + more))


def test_what_a_call_overwrites_is_kept_for_later_readers():
    more = """
    a = layer[0](x, x)
    b = layer[1](a, x)
    y = sub(a, b)
    return y"""
    compare(parse(LAYER + "    return c\n" + MAIN + more))


def test_two_carried_values_may_change_places():
    layer = LAYER + "    d = mul(y, 0.5)\n    return d, c\n"
    more = """
    y = neg(x)
    for i in range(5):
        x, y = layer[i](x, y)
    z = sub(x, y)
    return z"""
    compare(parse(layer + MAIN + more))


def test_an_argument_may_be_returned_as_it_is():
    layer = LAYER + "    return y, c\n"
    more = """
    y = neg(x)
    for i in range(3):
        x, y = layer[i](x, y)
    z = sub(x, y)
    return z"""
    compare(parse(layer + MAIN + more))


def test_a_loop_reads_the_same_value_in_every_pass():
    layer = (
        LAYER.replace("(x: f32[T, 16], y: f32[T, 16],", "(y: f32[T, 16], x: f32[T, 16],") + "    return c\n"
    )
    more = (
        "    e = exp(x)\n    for i in range(6):\n        x = layer[i](e, x)\n    z = sub(x, e)\n    return z"
    )
    compare(parse(layer + MAIN + more))


def test_the_initial_value_of_a_loop_may_be_read_after_it():
    layer = LAYER + "    return c\n"
    more = """
    h = mul(x, 1.5)
    first = neg(h)
    for i in range(4):
        h = layer[i](h, first)
    z = sub(h, x)
    return z"""
    compare(parse(layer + MAIN + more))


def body(draw, values, rows, count, call):
    """Random statements over values f32[T, 16]; new names are added to ``values``."""
    for i in range(count):
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        rows.append(
            draw(
                st.sampled_from(
                    [
                        f"v{i} = silu({a})",
                        f"v{i} = add({a}, {b})",
                        f"v{i} = mul({a}, 0.5)",
                        f"v{i} = linear({a}, w)",
                        f"t{i} = linear({a}, w)\n    v{i} = add({b}, t{i})",
                        f"v{i} = rms_norm({a}, ln)",
                        f"n{i} = rms_norm({a}, ln)\n    v{i} = add({b}, n{i})",
                        f"v{i}, s{i} = add_rms_norm({a}, {b}, ln)\n    u{i} = neg(s{i})",
                        f"p{i}, q{i} = split({a}, dim=1, sizes=(8, 8))\n    v{i} = concat(q{i}, p{i}, dim=1)",
                        (
                            f"c{i} = reshape({a}, dims=(T, 2, 8))\n    d{i} = tanh(c{i})\n"
                            f"    v{i} = reshape(d{i}, dims=(T, 16))"
                        ),
                        (
                            f"c{i} = slice({a}, dim=1, start=4, stop=12)\n    d{i} = silu_mul(c{i}, c{i})\n"
                            f"    v{i} = concat(d{i}, c{i}, dim=1)"
                        ),
                        (
                            f"c{i} = reshape({a}, dims=(T, 2, 8))\n    d{i} = permute(c{i}, dims=(1, 0, 2))\n"
                            f"    p{i}, q{i} = split(d{i}, dim=0, sizes=(1, 1))\n"
                            f"    e{i} = concat(q{i}, p{i}, dim=0)\n"
                            f"    g{i} = permute(e{i}, dims=(1, 0, 2))\n"
                            f"    v{i} = reshape(g{i}, dims=(T, 16))"
                        ),
                        (
                            f"c{i} = reshape({a}, dims=(1, T, 16))\n    d{i} = add(c{i}, {b})\n"
                            f"    p{i}, q{i} = split(d{i}, dim=2, sizes=(8, 8))\n"
                            f"    e{i} = silu_mul(p{i}, q{i})\n    g{i} = concat(e{i}, p{i}, dim=2)\n"
                            f"    v{i} = reshape(g{i}, dims=(T, 16))"
                        ),
                        (
                            f"c{i} = reshape({a}, dims=(T, 2, 8))\n"
                            f"    p{i}, q{i} = split(c{i}, dim=2, sizes=(2, 6))\n"
                            f"    m{i} = mean(q{i}, dim=1)\n    n{i} = expand(m{i}, dims=(T, 2, 6))\n"
                            f"    e{i} = concat(n{i}, p{i}, dim=2)\n    v{i} = reshape(e{i}, dims=(T, 16))"
                        ),
                        *([f"v{i} = {call}[{draw(st.integers(0, 5))}]({a}, {b})"] if call else []),
                    ]
                )
            )
        )
        values.append(f"v{i}")


@st.composite
def programs(draw):
    weights = 'w: f32[16, 16] = weight("{at}w"), ln: f32[16] = weight("{at}ln")'
    inner, values = [], ["x", "y"]
    body(draw, values, inner, draw(st.integers(1, 8)), None)
    a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
    one = f"def one(x: f32[T, 16], y: f32[T, 16], {weights.replace('{at}', 'l.{i}.')}):\n"
    two = one.replace("def one", "def two") + "".join(f"    {r}\n" for r in inner) + f"    return {a}, {b}\n"
    one += "".join(f"    {r}\n" for r in inner) + f"    return {a}\n"
    rows, values = ["x = embedding(ids, embed)"], ["x"]
    body(draw, values, rows, draw(st.integers(1, 10)), "one")
    h, g = draw(st.sampled_from(values)), draw(st.sampled_from(values))
    rows += [f"h = mul({h}, 1.0)", f"g = add({g}, 0.0)", "for i in range(3):\n        h, g = two[i](h, g)"]
    rows += [f"e = add(h, {draw(st.sampled_from(values))})", "y = sub(e, g)", "return y"]
    head = 'def main(ids: i32[T], seqs: seqs[T, S], embed: f32[50, 16] = weight("embed"), '
    return f"{one}\n{two}\n{head}{weights.replace('{at}', '')}):\n" + "".join(f"    {r}\n" for r in rows)


@settings(deadline=None, max_examples=60)
@given(programs(), st.booleans())
def test_random_programs(text, planned):
    m = parse(text)
    compare(run_pipeline(m, "plan-memory")[0] if planned else m)


FEW_BITS = """
f8row = quant(f8e4m3, group=0, scale=f32)
def main(ids: i32[T], seqs: seqs[T, S], embed: f32[50, 16] = weight("embed"), w: f8row[16, 16] = {w}):
    x = embedding(ids, embed)
    {rows}
    y = linear({x}, w{elem})
    return y
"""


def test_fp8_is_refused_before_anything_is_built(tmp_path):
    weight = 'quantize(weight("w"), f8row)'
    rows = FEW_BITS.format(w=weight, rows="q = quantize(x, to=f8row)", x="q", elem=", elem=f32")
    with pytest.raises(IRError, match=r"cpu: q: f8row\[T, 16\], .*no kernel reads such rows"):
        lower(parse(rows))
    alone = parse(FEW_BITS.format(w=weight, rows="z = sin(x)", x="x", elem=""))
    with pytest.raises(IRError, match="cpu: no kernel for weight w of quant"):
        write_weights(tmp_path / "w", lower(alone), alone, CHECKPOINT, quiet)
    m, _ = run_pipeline(parse(ATTENDS), "kv-cache(elem=f8e4m3)")
    with pytest.raises(IRError, match=r"cpu: kv: paged\[f8e4m3, 16\].*: kernels read caches of f32"):
        lower(m)


ATTENDS = """
def main(q: f32[T, 4, 8], seqs: seqs[T, S]):
    a = attention(q, q, q, seqs, scale=0.3)
    return a
"""
