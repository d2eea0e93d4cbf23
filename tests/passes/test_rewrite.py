"""What a pattern means, and what the driver keeps: readers, order, names, places, weights."""

from dataclasses import dataclass
from itertools import product

import pytest

from irloom.ir.errors import IrloomError
from irloom.ir.graph import Param, Value
from irloom.ir.ops import (
    add,
    add_rms_norm,
    concat,
    exp,
    gelu,
    layer_norm,
    linear,
    minimum,
    mul,
    neg,
    relu,
    rms_norm,
    silu,
    silu_mul,
    sin,
    softcap,
    split,
    sub,
    topk,
)
from irloom.ir.parse import parse
from irloom.ir.show import show
from irloom.ir.signature import Literal
from irloom.ir.verify import verify
from irloom.ir.weight_expr import Affine, show_weight
from irloom.passes import NoMatch, Rewrite, RewritePass, apply, limited


def rewritten(text, *rules):
    """The statements of ``main`` after the rules, and what changed."""
    m = parse(text)
    changes = apply(m, rules)
    verify(m)
    assert parse(show(m)) == m
    return [line.strip() for line in show(m, header=False).splitlines() if " = " in line], changes


def lines(text, *rules):
    return [line.split("  #")[0] for line in rewritten(text, *rules)[0]]


def near(text, *rules):
    return [str(miss) for miss in rewritten(text, *rules)[1].near_misses]


class SiluMul(Rewrite):
    def match(self, gate, up):
        return mul(silu(gate), up)

    def replace(self, gate, up):
        return silu_mul(gate, up)


class TestWhatAPatternMatches:
    def test_a_hole_takes_a_number_when_nothing_says_what_it_takes(self):
        class Half(Rewrite):
            def match(self, x, c):
                return neg(mul(x, c))

            def replace(self, x, c):
                return mul(x, -c)

        assert lines("def main(x: f32[T]):\n    a = mul(x, 2.0)\n    y = neg(a)\n    return y", Half()) == [
            "y: f32[T] = mul(x, -2.0)"
        ]

    def test_a_hole_marked_literal_takes_only_a_number(self):
        class Twice(Rewrite):
            def match(self, x: Value, c: Literal):
                return add(x, c)

            def replace(self, x, c):
                return sub(x, -c)

        text = "def main(x: f32[T], z: f32[T]):\n    a = add(x, z)\n    y = add(a, 1)\n    return y"
        assert lines(text, Twice()) == ["a: f32[T] = add(x, z)", "y: f32[T] = sub(a, -1)"]

    def test_a_written_number_matches_that_number_as_int_or_float(self):
        class One(Rewrite):
            def match(self, x: Value):
                return mul(x, 1)

            def replace(self, x):
                return x

        text = "def main(x: f32[T]):\n    a = mul(x, 1.0)\n    b = mul(a, 1.5)\n    y = neg(b)\n    return y"
        assert lines(text, One()) == ["b: f32[T] = mul(x, 1.5)", "y: f32[T] = neg(b)"]

    def test_an_attribute_that_is_not_written_must_have_the_default(self):
        class Gelu(Rewrite):
            def match(self, x):
                return gelu(x)

            def replace(self, x):
                return relu(x)

        text = "def main(x: f32[T]):\n    a = gelu(x, tanh=True)\n    y = gelu(a)\n    return y"
        assert lines(text, Gelu()) == ["a: f32[T] = gelu(x, tanh=True)", "y: f32[T] = relu(a)"]

    def test_an_attribute_hole_hands_the_value_on(self):
        class Cap(Rewrite):
            def match(self, x, *, cap):
                return neg(softcap(x, cap=cap))

            def replace(self, x, cap):
                return softcap(neg(x), cap=cap)

        text = "def main(x: f32[T]):\n    a = softcap(x, cap=3.0)\n    y = neg(a)\n    return y"
        assert lines(text, Cap()) == ["neg: f32[T] = neg(x)", "y: f32[T] = softcap(neg, cap=3.0)"]

    def test_a_hole_in_two_places_is_one_value(self):
        class Double(Rewrite):
            def match(self, x):
                return add(x, neg(x))

            def replace(self, x):
                return mul(x, 0.0)

        text = "def main(x: f32[T], z: f32[T]):\n    a = neg(x)\n    y = add(z, a)\n    return y"
        assert near(text, Double()) == [
            "main.y: Double: `x` would be both the parameter z and the parameter x"
        ]

    def test_one_rule_covers_an_operand_that_may_be_absent(self):
        class Norm(Rewrite):
            def match(self, x: Value, w: Value | None, b: Value | None, *, eps):
                return neg(layer_norm(x, w, b, eps=eps))

            def replace(self, x, w, b, eps):
                return layer_norm(neg(x), w, b, eps=eps)

        text = "def main(x: f32[T, 8], w: f32[8]):\n    {}\n    y = neg(a)\n    return y"
        for call in ("layer_norm(x)", "layer_norm(x, w)", "layer_norm(x, w, w, eps=0.5)"):
            got = lines(text.format(f"a = {call}"), Norm())
            assert got[1] == "y: f32[T, 8] = " + call.replace("(x", "(neg")

    def test_an_operand_that_is_not_written_must_be_absent(self):
        class NoBias(Rewrite):
            def match(self, x, w):
                return neg(linear(x, w))

            def replace(self, x, w):
                return linear(neg(x), w)

        text = (
            "def main(x: f32[T, 4], w: f32[8, 4], b: f32[8]):\n"
            "    a = linear(x, w, b)\n    y = neg(a)\n    return y"
        )
        assert near(text, NoBias()) == ["main.y: NoBias: wants None, not the parameter b"]

    def test_a_product_is_tried_both_ways_at_every_level(self):
        class Deep(Rewrite):
            def match(self, a, b, c):
                return mul(add(exp(a), b), sin(c))

            def replace(self, a, b, c):
                return add(add(a, b), c)

        text = """def main(x: f32[T], z: f32[T], w: f32[T]):
    e = exp(x)
    s = add(z, e)
    t = sin(w)
    y = mul(t, s)
    return y"""
        assert lines(text, Deep()) == ["add: f32[T] = add(x, z)", "y: f32[T] = add(add, w)"]

    def test_sums_in_sums_are_tried_every_way(self):
        class Deep(Rewrite):
            def match(self, a, b, c, d: Literal):
                return mul(add(a, exp(b)), add(add(sin(c), d), a))

            def replace(self, a, b, c, d):
                return sub(sub(sub(a, b), c), d)

        text = """def main(x: f32[T], z: f32[T], w: f32[T]):
    e = exp(x)
    s = add({})
    t = sin(w)
    u = add({})
    v = add({})
    y = mul({})
    return y"""
        for sums in product(("e, z", "z, e"), ("t, 3.0", "3.0, t"), ("u, z", "z, u"), ("s, v", "v, s")):
            assert lines(text.format(*sums), Deep()) == [
                "sub: f32[T] = sub(z, x)",
                "sub_1: f32[T] = sub(sub, w)",
                "y: f32[T] = sub(sub_1, 3.0)",
            ]

    def test_the_other_way_is_tried_when_where_declines_one(self):
        class Bias(Rewrite):
            def match(self, x: Value, w: Value, b: Value):
                return add(linear(x, w), b)

            def where(self, b):
                if b.type.rank != 1:
                    raise NoMatch(f"{b.name} is {b.type}, no bias")

            def replace(self, x, w, b):
                return linear(x, w, b)

        text = """def main(x: f32[T, 4], w: f32[8, 4], b: f32[8], v: f32[8, 8], q: f32[8]):
    l = linear(x, w)
    r = linear(q, v)
    {}
    return y"""
        for way in ("y = add(l, r)", "y = add(r, l)"):
            assert lines(text.format(way), Bias())[-1] == "y: f32[T, 8] = linear(x, w, r)"
        twice = "def main(x: f32[T, 4], w: f32[8, 4]):\n    l = linear(x, w)\n    y = add(l, l)\n    return y"
        assert near(twice, Bias()) == ["main.y: Bias: l is f32[T, 8], no bias"]

    def test_a_star_takes_the_other_operands_of_an_op_that_has_any_number(self):
        class First(Rewrite):
            def match(self, x, *rest, dim):
                return concat(neg(x), *rest, dim=dim)

            def replace(self, x, rest, dim):
                return concat(*rest, x, dim=dim)

        text = """def main(x: f32[T, 2], z: f32[T, 2], w: f32[T, 2]):
    a = neg(x)
    y = concat({}, dim=-1)
    return y"""
        assert lines(text.format("a, z, w"), First()) == ["y: f32[T, 6] = concat(z, w, x, dim=-1)"]
        assert lines(text.format("a, z"), First()) == ["y: f32[T, 4] = concat(z, x, dim=-1)"]
        assert near(text.format("z, a"), First()) == []

    def test_all_results_of_an_op_can_be_meant(self):
        class Both(Rewrite):
            def match(self, x, *, k):
                v, i = topk(neg(neg(x)), k=k)
                return v, i

            def replace(self, x, k):
                return topk(x, k=k)

        text = """def main(x: f32[T, 8]):
    a = neg(x)
    b = neg(a)
    v, i = topk(b, k=2)
    return v, i"""
        assert lines(text, Both()) == ["v, i = topk(x, k=2)"]

    def test_one_result_of_several_can_be_meant(self):
        class Top(Rewrite):
            def match(self, x):
                return neg(topk(x, k=2)[0])

            def replace(self, x):
                return topk(neg(x), k=2)[0]

        text = "def main(x: f32[T, 8]):\n    v, i = topk(x, k=2)\n    y = neg(v)\n    return y"
        got = lines(text, Top())
        assert got[0] == "neg: f32[T, 8] = neg(x)"
        assert got[1].startswith("y, topk_1 = topk(neg, k=2)")
        index = "def main(x: f32[T, 8]):\n    v, i = topk(x, k=2)\n    y = neg(i)\n    return y"
        assert near(index, Top()) == []  # only one op matched: the other result is another thing

    def test_parts_of_a_split_can_be_meant_by_number(self):
        class Swap(Rewrite):
            def match(self, x, *, n):
                return sub(split(x, dim=-1, sizes=(n, n))[1], split(x, dim=-1, sizes=(n, n))[0])

            def replace(self, x, n):
                a, b = split(x, dim=-1, sizes=(n, n))
                return neg(sub(a, b))

        text = (
            "def main(x: f32[T, 8]):\n"
            "    a, b = split(x, dim=-1, sizes=(4, 4))\n    y = sub(b, a)\n    return y"
        )
        assert [line.split(" = ")[1] for line in lines(text, Swap())] == [
            "split(x, dim=-1, sizes=(4, 4))",
            "sub(split, split_1)",
            "neg(sub)",
        ]

    def test_siblings_are_found_by_what_they_read(self):
        class Pair(Rewrite):
            def match(self, x):
                return exp(x), sin(x)

            def replace(self, x):
                return neg(x), relu(x)

        text = (
            "def main(x: f32[T]):\n"
            "    a = sin(x)\n    b = neg(a)\n    c = exp(x)\n    y = add(b, c)\n    return y"
        )
        assert sorted(lines(text, Pair())) == [
            "a: f32[T] = relu(x)",
            "b: f32[T] = neg(a)",
            "c: f32[T] = neg(x)",
            "y: f32[T] = add(b, c)",
        ]


class TestWhatTheDriverKeeps:
    def test_names_and_places_of_what_is_replaced(self):
        text = (
            "def main(g: f32[T, 8], u: f32[T, 8]):\n"
            "    s = silu(g)  # mlp.act\n    y = mul(s, u)  # mlp x.py:7\n    return y"
        )
        assert rewritten(text, SiluMul())[0] == ["y: f32[T, 8] = silu_mul(g, u)  # mlp x.py:7"]

    def test_a_value_inside_that_others_read(self):
        text = (
            "def main(g: f32[T], u: f32[T]):\n"
            "    s = silu(g)\n    y = mul(s, u)\n    z = neg(s)\n    return y, z"
        )
        assert near(text, SiluMul()) == ["main.y: SiluMul: s has another reader: z"]
        assert len(lines(text, SiluMul())) == 3

    def test_a_value_that_a_pattern_stands_for_may_have_readers_before_the_rest(self):
        class AddNorm(Rewrite):
            def match(self, x, y, w, *, eps):
                s = add(x, y)
                return s, rms_norm(s, w, eps=eps)

            def replace(self, x, y, w, eps):
                return add_rms_norm(x, y, w, eps=eps)

        text = """def main(x: f32[T, 8], y: f32[T, 8], w: f32[8]):
    s = add(x, y)
    z = neg(s)
    n = rms_norm(s, w)
    return z, n"""
        assert lines(text, AddNorm()) == ["s, n = add_rms_norm(x, y, w)", "z: f32[T, 8] = neg(s)"]
        late = """def main(x: f32[T, 8], y: f32[T, 8], v: f32[8]):
    s = add(x, y)
    z = neg(s)
    w = neg(v)
    n = rms_norm(s, w)
    return z, n"""
        assert near(late, AddNorm()) == ["main.n: AddNorm: z reads the result before w is there"]

    def test_types(self):
        class Wrong(Rewrite):
            def match(self, x):
                return neg(x)

            def replace(self, x):
                return topk(x, k=2)[0]

        text = "def main(x: f32[T, 8]):\n    y = neg(x)\n    return y"
        assert near(text, Wrong()) == ["main.y: Wrong: y is f32[T, 8], the replacement f32[T, 2]"]

    def test_the_reason_for_which_a_rule_declines(self):
        class Even(SiluMul):
            def where(self, gate):
                if gate.type.dims[-1] % 2:
                    raise NoMatch(f"{gate.name} has {gate.type.dims[-1]} columns")

        text = "def main(g: f32[T, 7], u: f32[T, 7]):\n    s = silu(g)\n    y = mul(s, u)\n    return y"
        assert near(text, Even()) == ["main.y: Even: g has 7 columns"]

    def test_a_match_that_came_further_than_its_root_is_a_near_miss(self):
        class Chain(Rewrite):
            def match(self, x):
                return neg(exp(sin(x)))

            def replace(self, x):
                return x

        text = "def main(x: f32[T]):\n    a = {}(x)\n    b = {}(a)\n    y = neg(b)\n    return y"
        assert near(text.format("relu", "exp"), Chain()) == ["main.y: Chain: a is relu, not sin"]
        assert near(text.format("sin", "relu"), Chain()) == []

    def test_weights_that_are_not_read_any_more_go_and_new_ones_come(self):
        class Fold(Rewrite):
            def match(self, x, w: Param, c: Literal):
                return linear(mul(x, c), w)

            def replace(self, x, w, c, site):
                scaled = site.new_weight("w", w.type, Affine(site.weight(w), float(c), 0.0))
                return linear(x, scaled)

        m = parse(
            'def main(x: f32[T, 4], w: f32[8, 4] = weight("a")):\n'
            "    a = mul(x, 2.0)\n    y = linear(a, w)\n    return y"
        )
        apply(m, [Fold()])
        (w,) = m.main.weights
        assert w.weight is not None
        assert (w.name, show_weight(w.weight)) == ("w_1", 'affine(weight("a"), 2.0, 0.0)')
        data = (
            "def main(x: f32[T, 4], w: f32[8, 4]):\n    a = mul(x, 2.0)\n    y = linear(a, w)\n    return y"
        )
        assert near(data, Fold()) == ["main.y: Fold: w is not a weight"]

    def test_what_is_computed_of_weights_alone_can_be_folded_into_one(self):
        class Join(Rewrite):
            def match(self, x, a: Param, b: Param):
                return add(linear(x, a), linear(x, b))

            def replace(self, x, a, b, site):
                both = site.fold(add(a, b)) if a.type.dims[0] == 3 else site.fold(concat(a, b, dim=0), "both")
                one, other = split(linear(x, both), dim=-1, sizes=(a.type.dims[0],) * 2)
                return add(one, other)

        text = """def main(x: f32[T, 4], a: f32[{n}, 4] = weight("a"), b: f32[{n}, 4] = weight("b")):
    u = linear(x, a)
    v = linear(x, b)
    y = add(u, v)
    return y"""
        m = parse(text.format(n=8))
        assert len(apply(m, [Join()])) == 1
        verify(m)
        assert [n.op.name for n in m.main.nodes] == ["linear", "split", "add"]
        (both,) = m.main.weights
        assert both.weight is not None
        assert (both.name, show_weight(both.weight)) == ("both", 'concat(weight("a"), weight("b"), dim=0)')
        assert near(text.format(n=3), Join()) == [
            "main.y: Join: add is computed of more than weights, or in a way that no weight is read"
        ]

    def test_a_chain_of_ops_on_weights_is_one_expression(self):
        class Scaled(Rewrite):
            def match(self, x, s: Param, w: Param):
                return linear(mul(x, s), w)

            def replace(self, x, s, w, site):
                return linear(x, site.fold(mul(mul(w, s), 2.0), w.name))

        m = parse(
            'def main(x: f32[T, 4], s: f32[4] = weight("s"), w: f32[8, 4] = weight("w")):\n'
            "    a = mul(x, s)\n    y = linear(a, w)\n    return y"
        )
        apply(m, [Scaled()])
        verify(m)
        (w,) = m.main.weights
        assert w.weight is not None
        assert show_weight(w.weight) == 'affine(scale(cast(weight("w"), f32), weight("s"), 1), 2.0, 0.0)'
        assert [n.op.name for n in m.main.nodes] == ["linear"]

    def test_what_a_loop_carries_on_keeps_its_name(self):
        class Same(Rewrite):
            def match(self, x: Value):
                return mul(x, 1)

            def replace(self, x):
                return x

        text = """def layer(x: f32[T]):
    y = neg(x)
    return y

def main(h: f32[T]):
    x = mul(h, 1)
    for i in range(2):
        x = layer[i](x)
    return x"""
        assert near(text, Same()) == ["main.x: Same: the loop over i carries x on"]


class TestHowFarItGoes:
    def test_rules_apply_to_what_rules_made(self):
        class NegNeg(Rewrite):
            shared = True

            def match(self, x: Value):
                return neg(neg(x))

            def replace(self, x):
                return x

        chain = "\n".join(f"    x{i + 1} = neg(x{i})" for i in range(10_000))
        m = parse(f"def main(x0: f32[T]):\n{chain}\n    y = exp(x10000)\n    return y")
        changes = apply(m, [NegNeg()])
        assert len(changes) == 5000
        assert [n.op.name for n in m.main.nodes] == ["exp"]

    def test_rules_that_undo_each_other_are_an_error_not_a_hang(self):
        class There(Rewrite):
            def match(self, x):
                return sin(x)

            def replace(self, x):
                return exp(x)

        class Back(Rewrite):
            def match(self, x):
                return exp(x)

            def replace(self, x):
                return sin(x)

        with pytest.raises(IrloomError, match="undo each other"):
            apply(parse("def main(x: f32[T]):\n    y = sin(x)\n    return y"), [There(), Back()])

    def test_fuel_stops_after_so_many_rewrites(self):
        text = (
            "def main(x: f32[T], u: f32[T]):\n"
            "    a = silu(x)\n    b = mul(a, u)\n    c = silu(b)\n    y = mul(c, u)\n    return y"
        )
        m = parse(text)
        with limited(1) as fuel:
            changes = apply(m, [SiluMul()])
        assert (len(changes), fuel.spent) == (1, 1)
        assert [n.op.name for n in m.main.nodes] == ["silu_mul", "silu", "mul"]

    def test_every_function_is_rewritten(self):
        text = """def layer(x: f32[T]):
    s = silu(x)
    y = mul(s, x)
    return y

def main(x: f32[T]):
    y = layer(x)
    s = silu(y)
    z = mul(s, y)
    return z"""
        assert rewritten(text, SiluMul())[1].places == ["layer.y: SiluMul", "main.z: SiluMul"]


def test_a_match_that_is_no_expression_is_the_authors_error():
    class Nothing(Rewrite):
        def match(self, x):
            return x

    with pytest.raises(IrloomError, match="return op calls on the holes"):
        apply(parse("def main(x: f32[T]):\n    y = sin(x)\n    return y"), [Nothing()])


def test_a_pass_may_be_its_own_rule():
    @dataclass(frozen=True)
    class Capped(RewritePass):
        limit: float = 1.0

        def match(self, x):
            return exp(x)

        def replace(self, x):
            return minimum(x, self.limit)

    m = parse("def main(x: f32[T, 4]):\n    y = exp(x)\n    return y")
    assert len(Capped(2.0).run(m)) == 1
    assert "minimum(x, 2.0)" in str(m)


def test_a_value_is_no_attribute():
    class Capped(RewritePass):
        def match(self, x, limit):
            return minimum(x, limit)

        def replace(self, x, limit):
            return softcap(x, cap=limit)

    m = parse("def main(x: f32[T, 4], most: f32[4]):\n    y = minimum(x, most)\n    return y")
    (miss,) = Capped().run(m).near_misses
    assert miss.reason == "softcap: attribute `cap` is the value most"
