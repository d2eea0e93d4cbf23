"""Chains of elementwise ops: one launch each, whose formula can be read, and which makes what bodies make."""

import pytest
import torch

from irloom.backends.cuda.launchers import LAUNCHERS
from irloom.backends.cuda.lower import lower
from irloom.backends.cuda.program import BODY, Launch
from irloom.ir.interp import Interpreter
from irloom.ir.parse import parse
from tests.backends.cuda.cross import compiled
from tests.backends.cuda.device import DEVICE
from tests.backends.cuda.near import assert_near, columns, normal, poisoned

T = 5


def launches(text: str) -> list[Launch]:
    """What ``main`` comes to; every step is a launch."""
    return lower(parse(text)).functions["main"].launches


def assert_same(text: str, *inputs: torch.Tensor, count: int = 1) -> None:
    """The launches of a program make what its bodies make in f64."""
    m = parse(text)
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    want = Interpreter(m, device=DEVICE)(*wide)
    values = dict(zip(m.funcs["main"].params, inputs, strict=True))
    made = lower(m).functions["main"].launches
    assert len(made) == count
    for s in made:
        assert s.kernel != BODY, s
        (result,) = s.results
        dims = [T if not isinstance(d, int) else d for d in result.type.dims]
        values[result] = poisoned(*dims, dtype=result.type.plain.torch)  # type: ignore[index]
        LAUNCHERS[s.kernel](values[result], *[values[a] for a in s.values], **s.attrs)  # type: ignore[index]
    for r, w in zip(m.funcs["main"].returns, want, strict=True):
        got = values[r]  # type: ignore[index]
        assert_near(got, w) if got.is_floating_point() else torch.testing.assert_close(got, w)


def test_nodes_that_follow_each_other_are_one_kernel() -> None:
    text = """
def main(x: bf16[T, 8], y: bf16[T, 8]):
    a = mul(x, 0.5)
    b = add(a, y)
    c = silu(b)
    d = mul(c, y)
    return d
"""
    (launch,) = launches(text)
    assert launch.attrs["formula"] == "(activated(((x0 * 0.5) + x1), 'silu') * x1)"
    x, y = (columns(s, T, 8, dtype=torch.bfloat16) for s in (1, 2))
    assert_same(text, x, y)


def test_what_is_read_twice_or_made_later_begins_a_chain() -> None:
    """``b`` is read twice, and what ``d`` adds is made behind the first node of its chain."""
    text = """
def main(x: f32[T, 8], y: f32[T, 8]):
    a = exp(x)
    b = tanh(y)
    c = mul(b, b)
    d = add(a, c)
    return d
"""
    assert_same(text, normal(1, T, 8), normal(2, T, 8), count=3)


def test_operands_broadcast_in_every_way() -> None:
    text = """
def main(x: f32[T, 2, 6], row: f32[T, 1, 1], head: f32[2, 1], w: f32[6], one: f32[1]):
    a = mul(x, row)
    b = add(a, head)
    c = div(b, w)
    d = sub(c, one)
    return d
"""
    x = columns(1, T, 2, 6)
    assert_same(text, x, normal(2, T, 1, 1), normal(3, 2, 1), normal(4, 6).abs() + 1, normal(5, 1))


def test_choices_by_whole_numbers() -> None:
    text = """
def main(x: f32[T, 6], i: i32[T, 1]):
    a = floor_div(i, 3)
    b = mod(a, 2)
    near = eq(b, 0)
    y = where(near, x, -1.5)
    z = cast(y, to=bf16)
    return z
"""
    ids = torch.tensor([[-4], [0], [3], [5], [7]], dtype=torch.int32, device=normal(1, 1).device)
    assert_same(text, normal(1, T, 6), ids, count=2)


SINGLE = {
    "neg": 1, "abs": 1, "exp": 1, "expm1": 1, "sin": 1, "cos": 1, "tanh": 1, "erf": 1, "sigmoid": 1,
    "softplus": 1, "floor": 1, "relu": 1, "silu": 1, "relu2": 1, "quick_gelu": 1, "mish": 1, "reciprocal": 1,
    "log": 0, "log1p": 0, "sqrt": 0, "rsqrt": 0,
}  # fmt: skip
"""Ops of one operand, and whether it may be negative."""


@pytest.mark.parametrize("op", SINGLE)
def test_every_op_of_one_operand(op: str) -> None:
    x = normal(1, T, 12) * 2
    assert_same(
        f"def main(x: f32[T, 12]):\n    y = {op}(x)\n    return y\n", x if SINGLE[op] else x.abs() + 0.01
    )


@pytest.mark.parametrize(
    "made",
    ["maximum(x, y)", "minimum(x, 0.3)", "pow(x, 3)", "pow(x, 2.0)", "gelu(x)", "gelu(x, tanh=True)",
     "mod(x, 0.7)", "softcap(x, cap=2.5)",
     "floor_div(x, 0.4)", "clamped_silu_mul(x, y, limit=1.5, alpha=1.7, shift=1.0)"],
)  # fmt: skip
def test_other_ops(made: str) -> None:
    text = f"def main(x: f32[T, 12], y: f32[T, 12]):\n    z = {made}\n    r = add(z, y)\n    return r\n"
    assert_same(text, normal(1, T, 12), normal(2, T, 12))


def test_xielu_has_numbers_that_were_learned() -> None:
    text = """
def main(x: f32[T, 12], above: f32[1], below: f32[1], beta: f32[1], eps: f32[1]):
    y = xielu(x, above, below, beta, eps)
    return y
"""
    numbers = [torch.tensor(v, device=normal(1, 1).device) for v in ([0.8], [0.4], [0.5], [-1e-6])]
    assert_same(text, normal(1, T, 12), *numbers)


def test_moves_are_copies_of_any_strides() -> None:
    text = """
def main(x: f32[T, 2, 6], y: f32[T, 2, 3]):
    turned = permute(x, dims=(1, 0, 2))
    odd = slice(x, dim=2, start=1, step=2)
    both = concat(odd, y, dim=2)
    z = mul(both, 2.0)
    back = permute(z, dims=(0, 2, 1))
    return turned, back
"""
    x = columns(1, T, 2, 6)
    assert_same(text, x, columns(2, T, 2, 3), count=5)
    flat = poisoned(2, 30)
    LAUNCHERS["reshape"](flat, x.transpose(0, 1), dims=(2, 30))
    assert torch.equal(flat, x.transpose(0, 1).reshape(2, 30))


def test_what_is_filled_is_part_of_a_chain() -> None:
    text = """
def main(x: f32[T, 6]):
    a = full(dims=(T, 6), value=0.5, elem=f32)
    b = mul(a, x)
    c = full(dims=(T, 6), value=3, elem=i32)
    return b, c
"""
    assert_same(text, normal(3, T, 6), count=2)


@pytest.mark.parametrize("op", ["sum", "mean", "amax", "amin"])
@pytest.mark.parametrize("dim", [-1, 1, 0])
def test_a_dim_is_reduced_wherever_it_is(op: str, dim: int) -> None:
    text = f"""
def main(x: f32[T, 3, 1500], y: i32[T, 7]):
    a = {op}(x, dim={dim}, keep=False)
    return a
"""
    x = columns(4, T, 3 * 1500, dtype=torch.float32).view(T, 3, 1500) if dim != 0 else normal(4, T, 3, 1500)
    assert_same(text, x, torch.zeros(T, 7, dtype=torch.int32, device=DEVICE))


def test_whole_numbers_are_reduced_too() -> None:
    text = """
def main(y: i32[T, 7]):
    b = sum(y)
    c = amin(y)
    return b, c
"""
    assert_same(text, torch.arange(T * 7, dtype=torch.int32, device=DEVICE).view(T, 7) - 17, count=2)


@pytest.mark.parametrize("op", ["sum", "mean", "amax", "amin"])
def test_what_is_reduced_with_nan_is_nan(op: str) -> None:
    x, out = normal(5, T, 4), poisoned(T, 1)
    x[1, 2] = torch.nan
    LAUNCHERS["reduced"](out, x, op=op, dim=1)
    assert out.isnan().squeeze(1).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize(("kind", "none"), [("bf16", float("-inf")), ("i32", -(2**63))])
def test_the_kernel_that_reduces_compiles(kind: str, none: float) -> None:
    numbers = dict.fromkeys(("count", "n", "along", "s0", "s1", "s2", "n1", "n2"), "i32")
    made = compiled(
        "irloom.backends.cuda.kernels.reduced",
        "_reduced",
        {"out": f"*{kind}", "x": f"*{kind}", **numbers},
        {"OP": "amax", "NONE": none, "ROWS": 4, "STEP": 256, "CHAIN": True}
        | {"KIND": "tl.float32" if kind == "bf16" else "tl.int64"},
    )
    assert "griddepcontrol.wait" in made["ptx"]
