"""Ops with a C++ kernel of their own: called as the signature says, equal to the body, explained if not."""

import re
from pathlib import Path
from typing import Any

import pytest

from irloom import KernelError, op
from irloom.backends.cpu import kernel, lowers
from irloom.backends.cpu.lower import lower
from irloom.ir.op import OPS
from irloom.ir.parse import parse
from irloom.passes.registry import load_plugin
from tests.backends.cpu.test_lowering import MAIN, compare

HERE = Path(__file__)


@kernel("""
for (int64_t t = 0; t < rows; t++)
  for (int64_t i = 0; i < n; i++) {
    const float a = x[t][i] > floor ? x[t][i] : floor;
    out[t][i] = a * a * gate[t][i];
  }
""")
@op("*b n, *b n -> *b n")
def extern_square_gate(x, gate, *, floor: float = 0.0):
    """``max(x, floor) ** 2 * gate``."""
    return x.clamp(min=floor).square() * gate


@kernel("""
for (int64_t t = 0; t < rows; t++) {
  float sum = 0, most = -INFINITY;
  for (int64_t i = 0; i < h; i++)
    for (int64_t j = 0; j < d; j++) {
      const float v = x[t][i * d + j] * (w ? w[j] : 1.0f) + (cap ? *cap : 0.0f);
      sum += v;
      most = v > most ? v : most;
    }
  out0[t][0] = sum, out1[t][0] = most;
}
""")
@op("t (h d), d? -> t, t")
def extern_sum_and_most(x, w=None, *, h: int, cap: "float | None" = None):
    """Sum and largest of each row, of which each head was multiplied by ``w`` and moved by ``cap``."""
    y = x.unflatten(-1, (h, -1)) * (1.0 if w is None else w) + (cap or 0.0)
    return y.flatten(1).sum(-1), y.flatten(1).amax(-1)


@kernel(
    'for (int64_t t = 0; t < rows; t++) for (int64_t i = 0; i < b; i++)'
    ' out[t][i] = index[t][i] % 2 && up && kind[0] == \'o\' ? 1.0f : 0.0f;',
    index="i32",
)  # fmt: skip
@op("*b -> *b")
def extern_odd(index, *, up: bool = True, kind: str = "odd"):
    """One where an index is odd."""
    return (index % 2 * int(up and kind == "odd")).float()


@extern_odd.dtype
def _(types, attrs):
    from irloom.ir.elem import ELEMS

    return ELEMS["f32"]


def test_a_call_names_what_the_kernel_takes():
    text = compare(
        parse(MAIN + "    a = linear(x, w)\n    y = extern_square_gate(a, x, floor=0.25)\n    return y"),
        fallbacks=set(),
    )
    assert "kernels.extern_square_gate(a, x, y, n=16, floor=0.25)" in text


def test_heads_and_columns_come_as_rows_with_gaps():
    more = """
    a, b = split(x, dim=1, sizes=(8, 8))
    h = reshape(a, dims=(T, 2, 4))
    g = reshape(b, dims=(T, 2, 4))
    s = extern_square_gate(h, g)
    r = reshape(s, dims=(T, 8))
    y = concat(r, b, dim=1)
    return y"""
    assert "parts=2" in compare(parse(MAIN + more), fallbacks=set())


def test_several_results_optional_operands_and_products_of_dims():
    main = MAIN.replace('w: f32[16, 16] = weight("w")', 'k: f32[8] = weight("k")')
    more = """
    a, b = extern_sum_and_most(x, k, h=2, cap=0.5)
    c, d = extern_sum_and_most(x, h=2)
    {}
    return y"""
    columns = "\n".join(f"    {v}1 = reshape({v}, dims=(T, 1))" for v in "abcd")
    joined = f"{columns.strip()}\n    y = concat(a1, b1, c1, d1, dim=1)"
    text = compare(parse(main + more.format(joined)), fallbacks=set())
    assert "kernels.extern_sum_and_most(x, k_vector, a, b, h=2, d=8, cap=0.5)" in text
    assert "kernels.extern_sum_and_most(x, None, c, d, h=2, d=8, cap=None)" in text


def test_integers_truths_and_words():
    more = "    a = extern_odd(ids)\n    b = reshape(a, dims=(T, 1))\n    y = mul(x, b)\n    return y"
    text = compare(parse(MAIN + more), fallbacks=set())
    assert "kernels.extern_odd(ids, a, b=1, up=True, kind='odd')" in text


def test_an_operand_that_is_absent_leaves_its_dim_open():
    """The kernel is told that it is 0."""

    @kernel("for (int64_t t = 0; t < rows; t++) out[t][0] = x[t][0] + k + (w ? w[0] : 0);")
    @op("*b n, k? -> *b n")
    def extern_first(x, w=None):
        """A first entry, a count, and a first weight."""
        return x + (0 if w is None else len(w) + w[0])

    more = "    f = slice(x, dim=1, start=0, stop=1)\n    y = extern_first(f)\n    return y"
    assert "extern_first(f, None, y, n=1, k=0)" in compare(parse(MAIN + more), fallbacks=set())


def test_the_weights_of_a_layer():
    layer = """
def layer(x: f32[T, 16], w: f32[16] = weight("l.{i}.ln")):
    a, b = extern_sum_and_most(x, w, h=1)
    c = reshape(a, dims=(T, 1))
    y = add(x, c)
    return y
"""
    main = MAIN + "    for i in range(3):\n        x = layer[i](x)\n    return x"
    assert "kernels.extern_sum_and_most(x, w_vector[i], a, b, h=1, d=16" in compare(parse(layer + main))


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ("extern_square_gate(w, w)", "main.y: `x` is f32[16, 16]: it has no row for each token or sequence"),
        ("extern_odd(x)", "main.y: `index` is f32[T, 16]: the kernel takes i32"),
        ("extern_square_gate(x, x, floor=T)", "main.y: attribute `floor` is T, not of type float"),
    ],
)
def test_what_does_not_fit_runs_the_body_and_says_why(node: str, why: str):
    program = lower(parse(MAIN + f"    y = {node}\n    return y"))
    assert program.declined == {node.partition("(")[0]: why}
    assert re.search(rf"reference\(.*  # {re.escape(why.removeprefix('main.y: '))}", program.text)


PLUGIN = '''
from irloom import op
from irloom.backends.cpu import kernel

@kernel({source})
@op("*b n -> *b n")
def {name}(x):
    """The same."""
    return x * 1
'''
HEAD = "Rows<const float> x, Rows<float> out, int64_t rows, int64_t n"
WRONG = {
    "extern_wrong": (HEAD, "x[rws] = 1;", "'rws' was not declared", "extern_wrong.cpp:3"),
    "extern_head": ("float x", "", "conflicting declaration", "extern_head.cpp:2"),
    "extern_name": (HEAD, "", "defines another function", "extern_name.cpp:1"),
    "extern_inline": (None, "'''\nfloat y = z;\n'''", "'z' was not declared", "extern_inline.py:6"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_kernel_that_does_not_compile_is_named_with_its_line(name: str, tmp_path: Path):
    """In a file of its own, and within Python."""
    head, body, said, where = WRONG[name]
    if head is not None:
        function = name if name != "extern_name" else "another"
        text = f'// a comment\nextern "C" void {function}({head}) {{\n  {body}\n}}\n'
        (tmp_path / f"{name}.cpp").write_text(text)
    source = body if head is None else repr(f"{name}.cpp")
    (tmp_path / f"{name}.py").write_text(PLUGIN.format(source=source, name=name))
    load_plugin(tmp_path / f"{name}.py")
    with pytest.raises(KernelError) as caught:
        compare(parse(MAIN + f"    y = {name}(x)\n    return y"))
    assert said in caught.value.message.replace("‘", "'").replace("’", "'")
    assert caught.value.places == [f"at {tmp_path / where}"]
    assert f'extern "C" void {name}({HEAD})' in caught.value.hint


REFUSED = {
    "extern_opaque": ("_ -> *b n", "x", "dims the signature does not tell"),
    "extern_late": ("n *b -> *b n", "x", "a dim of `x` that is not its first"),
    "extern_apart": ("*b n -> *b, n", "x", "no first dim in common"),
    "extern_tuple": ("*b n -> *b n", "x, *, sizes=(1, 2)", "attribute `sizes` is tuple"),
    "extern_out": ("*b n -> *b n", "out", "two of its parameters would be called `out`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_kernel_can_be_called_for(name: str):
    signature, given, why = REFUSED[name]
    scope: dict[str, Any] = {"op": op}
    exec(f"@op('{signature}')\ndef {name}({given}):\n    'Nothing.'\n", scope)  # noqa: S102
    with pytest.raises(KernelError, match=why):
        kernel(";")(scope[name])
    del OPS._ops[name]  # whose body is none


def test_an_op_has_one_lowering():
    with pytest.raises(KernelError, match=f"extern_odd has a lowering for cpu already: in {HERE}"):
        kernel(";", index="i32")(OPS["extern_odd"])
    with pytest.raises(KernelError, match=r"op linear has a lowering .* in irloom\.backends\.cpu\.lowerings"):
        lowers("linear")(lambda f, n: False)


@op("*b n -> *b n")
def extern_triple(x):
    """Three times ``x``."""
    return 3 * x


@lowers(extern_triple)
def lower_triple(f, n):
    """By a kernel that is there already."""
    if not f.f32(n.args[0]):
        return False
    f.place(n.result)
    f.call("copy", n.args[0], n.result)
    for _ in range(2):
        sums = (n.args[0], n.result, n.result, "None", "None")
        f.call("add_rms_norm", *sums, eps=0.0, inner="None", inner_eps=0.0)
    return True


def test_a_lowering_may_emit_what_it_likes():
    text = compare(parse(MAIN + "    y = extern_triple(x)\n    return y"), fallbacks=set())
    assert text.count("add_rms_norm") == 2


@kernel("for (int64_t t = 0; t < rows; t++) for (int64_t i = 0; i < n; i++) out[t][i] = by * x[t][i];")
@op("*b n -> *b n")
def extern_scaled(x, *, by: float):
    """``by * x``."""
    return by * x


@op("*b n -> *b n")
def extern_half(x):
    """Half of ``x``."""
    return 0.5 * x


@lowers(extern_half)
def lower_half(f, n):
    """By the kernel of another op."""
    if n.result.type.dims[-1] == 8:
        return f.decline(n, "rows of 8 are for the body")
    f.place(n.result)
    numbers = {"n": n.result.type.dims[-1], "by": {16: 0.5}[n.result.type.dims[-1]]}
    f.call("kernels.extern_scaled", n.args[0], n.result, **numbers, loc=n.loc)
    f.program.extern.add("extern_scaled")
    return True


def test_a_lowering_may_call_the_kernel_of_another_op():
    text = compare(parse(MAIN + "    y = extern_half(x)\n    return y"), fallbacks=set())
    assert "kernels.extern_scaled(x, y, n=16, by=0.5)" in text


def test_a_lowering_that_declines_or_fails_is_named():
    cut = "    a, b = split(x, dim=1, sizes=({}, {}))\n    y = extern_half(a)\n    return y"
    program = lower(parse(MAIN + cut.format(8, 8)))
    assert program.declined == {"extern_half": "main.y: rows of 8 are for the body"}
    with pytest.raises(KernelError) as caught:
        lower(parse(MAIN + cut.format(12, 4)))
    assert caught.value.message == "op extern_half: its lowering for cpu raised KeyError: 12"
    assert caught.value.places[0] == "in main.y" and str(HERE) in caught.value.places[1]
