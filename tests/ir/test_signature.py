"""The signature language: what names stand for, what follows for results, meshes and cost."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from irloom.ir.dims import evaluate, sym
from irloom.ir.errors import IRError
from irloom.ir.op import OPS
from irloom.ir.parse import parse
from irloom.ir.signature import Operand, bind, parse_signature
from irloom.ir.types import Type

sizes = st.integers(1, 12)
leads = st.lists(sizes, max_size=3).map(tuple)


def read(*texts: str) -> list[Type]:
    """Types of their text."""
    header = "i8g4 = quant(i8, group=4, scale=f32)\n"
    given = ", ".join(f"p{i}: {t}" for i, t in enumerate(texts))
    return [p.type for p in parse(f"{header}def main({given}):\n    return p0\n").main.params]


def f32(*dims: int, axes: tuple[str | None, ...] = (), partial: str | None = None) -> Type:
    return Type(read("f32[1]")[0].elem, dims, axes, partial)


def result(signature: str, *operands: Operand, **attrs: object) -> Type:
    """The first result of an op with this signature."""
    sig = parse_signature(signature)
    b = bind("op", sig, "abcdef", operands, attrs)
    return b.result(sig.outs[0], read("f32[1]")[0].elem)


@given(leads, sizes, sizes)
def test_leading_dims_go_through(lead: tuple[int, ...], k: int, n: int):
    assert result("*b k, n k -> *b n", f32(*lead, k), f32(n, k)) == f32(*lead, n)


@given(leads, leads, sizes)
def test_leading_dims_are_the_same_in_every_operand(x: tuple[int, ...], y: tuple[int, ...], d: int):
    if x == y:
        assert result("*b d, *b d -> *b d", f32(*x, d), f32(*y, d)) == f32(*x, d)
    else:
        with pytest.raises(IRError, match=r"op: operand `b` .* has leading dims"):
            result("*b d, *b d -> *b d", f32(*x, d), f32(*y, d))


@given(sizes, sizes, sizes)
def test_a_product_is_solved_for_the_factor_that_is_open(kv: int, g: int, d: int):
    assert result("(kv g) d, kv d -> g kv d", f32(kv * g, d), f32(kv, d)) == f32(g, kv, d)


@given(sizes, sizes)
def test_a_product_of_known_factors_must_be_right(a: int, b: int):
    assert result("a, b, (a b) -> (b a)", f32(a), f32(b), f32(a * b)) == f32(a * b)
    with pytest.raises(IRError, match=r"dim `\(a b\)` of `c`"):
        result("a, b, (a b) -> (b a)", f32(a), f32(b), f32(a * b + 1))


def test_a_product_with_two_open_factors_is_refused():
    with pytest.raises(IRError, match="leaves `a` and `b` open"):
        result("(a b) -> a", f32(12))


def test_a_product_may_be_symbolic():
    (x,) = read("f32[8*T]")
    assert result("(t g), g -> t", x, f32(8)).dims == (sym("T"),)


shapes = st.lists(st.sampled_from([1, 1, 3, 5]), max_size=3).map(tuple)


@given(shapes, shapes)
def test_broadcasting_is_that_of_torch(x: tuple[int, ...], y: tuple[int, ...]):
    try:
        want = tuple(torch.broadcast_shapes(x, y))
    except RuntimeError:
        with pytest.raises(IRError, match="does not broadcast"):
            result("~b, ~b -> ~b", f32(*x), f32(*y))
        return
    assert result("~b, ~b -> ~b", f32(*x), f32(*y)) == f32(*want)


@given(shapes, st.sampled_from([2, 0.5, True]))
def test_a_number_broadcasts_against_anything(x: tuple[int, ...], number: float):
    assert result("~b, ~b -> ~b", f32(*x), number) == f32(*x)
    assert result("~b, ~b -> ~b", number, f32(*x)) == f32(*x)


@given(leads, sizes, sizes)
def test_an_indexed_dim_disappears_unsummed(ids: tuple[int, ...], v: int, d: int):
    sig = "*b, %v d -> *b d"
    assert result(sig, f32(*ids), f32(v, d)) == f32(*ids, d)
    assert parse_signature(sig).summed == frozenset()
    assert result(sig, f32(*ids), f32(v, d, axes=("tp", None))).partial is None


@given(leads, sizes, sizes, st.booleans())
def test_an_optional_operand_may_be_absent(lead: tuple[int, ...], k: int, n: int, there: bool):
    bias = f32(n) if there else None
    assert result("*b k, n k, n? -> *b n", f32(*lead, k), f32(n, k), bias) == f32(*lead, n)


def test_an_operand_that_is_not_optional_may_not():
    with pytest.raises(IRError, match="op: operand `b` is missing"):
        result("d, d -> d", f32(4), None)


def test_an_attribute_gives_a_dim():
    assert result("*b d -> *b k", f32(7, 9), k=3) == f32(7, 3)
    with pytest.raises(IRError, match="the operands leave dim `k` of the result open"):
        result("*b d -> *b k", f32(7, 9))


def test_an_opaque_operand_says_nothing():
    assert result("d, _ -> d", f32(4), f32(7, 7, 7)) == f32(4)


def test_a_signature_has_an_arrow():
    with pytest.raises(IRError, match="has no `->`"):
        parse_signature("a, b")


@pytest.mark.parametrize(
    ("signature", "operands", "want"),
    [
        ("*b k, n k -> *b n", ("f32[T, 8]", "f32[4@tp, 8]"), "f32[T, 4@tp]"),
        ("*b k, n k -> *b n", ("f32[T, 8@tp]", "f32[4, 8@tp]"), "partial[tp, f32][T, 4]"),
        ("*b k, n k -> *b n", ("f32[T@dp, 8@tp]", "f32[4, 8@tp]"), "partial[tp, f32][T@dp, 4]"),
        ("+~b, +~b -> +~b", ("partial[tp, f32][T]", "partial[tp, f32][T]"), "partial[tp, f32][T]"),
        ("+~b -> ~b", ("partial[tp, f32][T]",), "f32[T]"),
        ("~b, ~b -> ~b", ("f32[T, 8@tp]", "f32[8@tp]"), "f32[T, 8@tp]"),
        ("~b, ~b -> ~b", ("f32[T, 8@tp]", "f32[T, 1]"), "f32[T, 8@tp]"),
        ("t (kv g) !d, t kv !d -> t (kv g) !d", ("f32[T, 8@tp, 4]", "f32[T, 2@tp, 4]"), "f32[T, 8@tp, 4]"),
        ("t (kv g) d -> t (kv g d)", ("f32[T, 8@tp, 4]", None), None),
    ],
)
def test_axes_follow_the_dims_they_split(signature: str, operands: tuple[str, ...], want: str | None):
    if want is None:
        with pytest.raises(IRError, match="open"):
            result(signature, *read(*(t for t in operands if t)))
    else:
        assert [result(signature, *read(*operands))] == read(want)


def test_a_sum_is_split_over_one_axis():
    with pytest.raises(IRError, match="split over two mesh axes, dp and tp"):
        result("a b, b c -> a", *read("f32[2, 4@tp]", "f32[4@tp, 6@dp]"))


Q, CACHE, SCALE = "f32[T, 2, 8]", "paged[bf16, 16][P, 1, 8]", {"scale": 1.0}


# Costs, counted by hand for T=3 tokens of S=2 sequences that attend to C=5 tokens each. An f32 is 4 bytes.
@pytest.mark.parametrize(
    ("name", "operands", "attrs", "flops", "moved"),
    [
        ("linear", ["f32[T, 8]", "f32[16, 8]"], {}, 2 * 3 * 8 * 16, 4 * (24 + 128 + 48)),
        ("linear", ["f32[T, 8]", "i8g4[16, 8]"], {}, 2 * 3 * 8 * 16, 4 * (24 + 48) + 128 + 4 * 32),
        ("matmul", ["f32[2, T, 8]", "f32[2, 8, 5]"], {}, 2 * 2 * 3 * 8 * 5, 4 * (48 + 80 + 30)),
        ("add", ["f32[T, 8]", "f32[8]"], {}, 24, 4 * (24 + 8 + 24)),
        ("mul", ["bf16[T, 8]", 0.5], {}, 24, 2 * 48),
        ("rms_norm", ["f32[T, 8]", "f32[8]"], {}, 24, 4 * (24 + 8 + 24)),
        ("rope", ["f32[T, 2, 8]", "i32[T]", "f32[4]"], {}, 3 * 48, 4 * (48 + 3 + 4 + 48)),
        ("reshape", ["f32[T, 8]"], {"dims": (sym("T"), 2, 4)}, 0, 0),
        ("permute", ["f32[T, 8]"], {"dims": (1, 0)}, 0, 4 * 48),
        ("embedding", ["i32[T]", "f32[100, 8]"], {}, 0, 4 * 3 + 2 * 4 * 24),
        ("gather", ["f32[T, 100]", "i32[T, 2]"], {}, 0, 4 * (300 + 6 + 6)),
        ("last_rows", ["f32[T, 8]", "seqs[T, S]"], {}, 0, 2 * 4 * 16),
        ("positions", ["seqs[T, S]"], {}, 0, 4 * 3),
        ("kv_append", [CACHE, "f32[T, 1, 8]", "f32[T, 1, 8]", "seqs[T, S]"], {}, 0, 2 * 4 * 24 + 2 * 2 * 24),
        ("paged_attention", [Q, CACHE, "seqs[T, S]"], SCALE, 4 * 48 * 5, 2 * 4 * 48 + 2 * 2 * 8 * 2 * 5),
        ("attention", [Q, "f32[T, 1, 8]", "f32[T, 1, 8]", "seqs[T, S]"], SCALE, 4 * 48 * 5, 4 * 144),
    ],
)  # fmt: skip
def test_flops_and_bytes(
    name: str, operands: list[str | float], attrs: dict[str, object], flops: int, moved: int
):
    types = iter(read(*(t for t in operands if isinstance(t, str))))
    args = [next(types) if isinstance(t, str) else t for t in operands]
    op, env = OPS[name], {"T": 3, "S": 2, "C": 5, "P": 7}
    full = op.complete(attrs)
    assert evaluate(op.count_flops(args, full), env) == flops
    assert evaluate(op.count_bytes(args, full), env) == moved
