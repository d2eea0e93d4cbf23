"""Rules that no text can break: a sound program is broken in memory, as a wrong pass would."""

from collections.abc import Callable

import pytest

from irloom.ir.elem import ELEMS, Quant
from irloom.ir.errors import IRError
from irloom.ir.graph import Call, Loop, Module, Param
from irloom.ir.parse import parse
from irloom.ir.verify import RULES, verify

PROGRAM = """
T: dim[1, 64]
i8g8 = quant(i8, group=8, scale=f32)

def layer(x: f32[T, 8], w: i8g8[8, 8] = quantize(weight("layers.{i}.w"), i8g8)):
    y = linear(x, w)
    return y

def main(x: f32[T, 8]):
    a = silu(x)
    b = add(a, x)
    for i in range(3):
        b = layer[i](b)
    c = relu(b)
    return c
"""


def loop(m: Module) -> Loop:
    (found,) = (s for s in m.main.body if isinstance(s, Loop))
    return found


def call(m: Module) -> Call:
    (found,) = loop(m).body
    assert isinstance(found, Call)
    return found


def use_before_definition(m: Module) -> None:
    m.main.body[0], m.main.body[1] = m.main.body[1], m.main.body[0]


def return_of_nothing(m: Module) -> None:
    m.main.returns = [m.funcs["layer"].returns[0]]


def use_of_a_value_of_the_loop(m: Module) -> None:
    m.main.nodes[-1].args = [loop(m).yields[0]]


def a_name_twice(m: Module) -> None:
    m.main.nodes[1].result.name = "a"
    for v in (*loop(m).params, *loop(m).yields, *loop(m).results):
        v.name = "a"


def a_name_lost_in_the_loop(m: Module) -> None:
    loop(m).results[0].name = "d"


def a_stale_type(m: Module) -> None:
    x = m.main.nodes[-1].result
    x.type = x.type.with_elem(ELEMS["f16"])


def operands_that_do_not_fit(m: Module) -> None:
    x = m.main.params[0]
    x.type = x.type.with_dims((*x.type.dims[:1], 4))


def an_undeclared_scheme(m: Module) -> None:
    del m.quants["i8g8"]


def another_scheme_of_that_name(m: Module) -> None:
    m.quants["i8g8"] = Quant("i8g8", ELEMS["i8"], 4, ELEMS["f32"])


def data_after_weights(m: Module) -> None:
    layer = m.funcs["layer"]
    layer.params.append(Param("z", layer.params[0].type))


def a_callee_after_its_caller(m: Module) -> None:
    m.funcs = {"main": m.main, "layer": m.funcs["layer"]}


def a_callee_that_is_gone(m: Module) -> None:
    del m.funcs["layer"]


def a_call_of_other_results(m: Module) -> None:
    x = call(m).results[0]
    x.type = x.type.with_elem(ELEMS["bf16"])


def a_loop_in_a_loop(m: Module) -> None:
    loop(m).body = [loop(m.copy())]


@pytest.mark.parametrize(
    ("harm", "rule", "message"),
    [
        (use_before_definition, "defined-before-use", "a is used by b before it is defined"),
        (return_of_nothing, "defined-before-use", "y is returned, but nothing defines it"),
        (use_of_a_value_of_the_loop, "defined-before-use", "b is used by c before it is defined"),
        (a_name_twice, "one-name-each", "a names two values"),
        (a_name_lost_in_the_loop, "one-name-each", "the loop over i carries b on as d"),
        (a_stale_type, "types-follow", "c: f16[T, 8], but relu makes f32[T, 8]"),
        (operands_that_do_not_fit, "types-follow", "a: f32[T, 8], but silu makes f32[T, 4]"),
        (an_undeclared_scheme, "declared", "w: i8g8[8, 8]: element i8g8 is not declared"),
        (another_scheme_of_that_name, "declared", "w: i8g8[8, 8]: element i8g8 is not declared"),
        (data_after_weights, "weights-last", "parameter z comes after a weight"),
        (a_callee_after_its_caller, "calls-fit", "main calls layer, which is not defined before it"),
        (a_callee_that_is_gone, "calls-fit", "main calls layer, which is not defined before it"),
        (a_call_of_other_results, "calls-fit", "layer returns [f32[T, 8]], not [bf16[T, 8]]"),
        (a_loop_in_a_loop, "loops-are-flat", "the loop over i stands in another loop"),
    ],
)
def test_a_broken_program_names_the_rule(harm: Callable[[Module], None], rule: str, message: str):
    m = parse(PROGRAM)
    verify(m)
    harm(m)
    with pytest.raises(IRError) as caught:
        verify(m)
    assert caught.value.message == message
    assert f"  --> rule {rule}, function" in str(caught.value)


def test_every_rule_says_what_it_is_about():
    assert all(check.__doc__ for check in RULES.values())
