"""Dims are a ring, and what is computed on them is what would be computed on the integers they stand for."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from irloom.ir.dims import Dim, Sym, covers, divide, evaluate, product, sym, symbols
from irloom.ir.errors import IRError

NAMES = ("T", "S", "P")
integers = st.integers(-6, 6)
atoms = st.one_of(integers, st.sampled_from([sym(n) for n in NAMES]))
envs = st.fixed_dictionaries({n: st.integers(1, 50) for n in NAMES})


def grown(inner: st.SearchStrategy[Dim]) -> st.SearchStrategy[Dim]:
    pairs = st.tuples(inner, inner)
    return st.one_of(pairs.map(lambda p: p[0] + p[1]), pairs.map(lambda p: p[0] * p[1]))


dims = st.recursive(atoms, grown, max_leaves=6)
monomials = st.builds(
    lambda c, names: product([c, *map(sym, names)]),
    st.integers(1, 5),
    st.lists(st.sampled_from(NAMES), max_size=2),
)


@given(dims, dims, dims)
def test_the_laws_of_a_ring(a: Dim, b: Dim, c: Dim):
    assert a + b == b + a
    assert a * b == b * a
    assert (a + b) + c == a + (b + c)
    assert (a * b) * c == a * (b * c)
    assert a * (b + c) == a * b + a * c
    assert a + 0 == a
    assert a * 1 == a
    assert a * 0 == 0
    assert a - a == 0
    assert b - a == b + a * -1


@given(dims, dims, envs)
def test_computing_and_evaluating_can_be_exchanged(a: Dim, b: Dim, env: dict[str, int]):
    x, y = evaluate(a, env), evaluate(b, env)
    assert evaluate(a + b, env) == x + y
    assert evaluate(a - b, env) == x - y
    assert evaluate(a * b, env) == x * y
    assert evaluate(product([a, b, a]), env) == x * y * x


@given(dims, dims)
def test_equal_dims_are_equal_objects(a: Dim, b: Dim):
    assert (a == b) == (a - b == 0)
    if a == b:
        assert hash(a) == hash(b)


@given(dims)
def test_what_holds_no_symbol_is_an_integer(a: Dim):
    assert isinstance(a, Sym) == bool(symbols(a))


@given(dims, monomials)
def test_division_undoes_multiplication(a: Dim, b: Dim):
    assert divide(a * b, b) == a


@given(dims, monomials, envs)
def test_a_quotient_is_exact_or_refused(a: Dim, b: Dim, env: dict[str, int]):
    try:
        q = divide(a, b)
    except IRError:
        return
    assert q * b == a
    assert evaluate(q, env) * evaluate(b, env) == evaluate(a, env)


@pytest.mark.parametrize(
    ("a", "b"), [(sym("T"), 2), (7, 2), (sym("T"), sym("S")), (8, sym("T")), (8, sym("T") + 1), (8, 0)]
)
def test_no_quotient(a: Dim, b: Dim):
    with pytest.raises(IRError, match="does not divide"):
        divide(a, b)


@given(dims, dims, envs)
def test_what_covers_is_never_smaller(a: Dim, b: Dim, env: dict[str, int]):
    assume(covers(a, b))
    assert evaluate(a, env) >= evaluate(b, env)


@given(dims, st.integers(0, 4))
def test_a_dim_covers_itself_and_what_is_less(a: Dim, less: int):
    assert covers(a, a - less)
    assert covers(a - less, a) == (less == 0)


def test_a_symbol_without_a_value_is_named():
    with pytest.raises(IRError, match=r"dim 2\*T \+ 1: no value for T"):
        evaluate(sym("T") * 2 + 1, {"S": 3})
