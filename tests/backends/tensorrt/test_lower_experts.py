"""Experts and routers as layers: dense, or gathered where a step has few tokens; never of a dynamic shape."""

from __future__ import annotations

import pytest

from irloom.backends.tensorrt.layers.matmul import MatrixMultiply
from irloom.backends.tensorrt.lower import lower
from tests.backends.tensorrt.real import refusal
from tests.backends.tensorrt.traffic import ROWS, Beside, module

HIDDEN, INNER = 16, 8


def mixture(experts: int, k: int, elem: str = "f32", bias: bool = False, act: str = "silu") -> str:
    shapes = {"gate_up": (experts, 2 * INNER, HIDDEN), "down": (experts, HIDDEN, INNER)}
    if bias:
        shapes |= {"gate_up_bias": (experts, 2 * INNER), "down_bias": (experts, HIDDEN)}
    weights = "".join(f', {name}: {elem}{list(dims)} = weight("{name}")' for name, dims in shapes.items())
    names = ", ".join(shapes)
    return (
        f"def main(x: {elem}[T, {HIDDEN}], index: i32[T, {k}], share: {elem}[T, {k}]{weights}) "
        f"-> {elem}[T, {HIDDEN}]:\n"
        f"    y: {elem}[T, {HIDDEN}] = moe(x, index, share, {names}, act={act!r})\n"
        "    return y\n"
    )


def one(experts: int, k: int, each: bool, bias: bool = False) -> str:
    """``expert_linear`` of a row per token, or of one per token and choice."""
    x = f"f32[T, {k}, {HIDDEN}]" if each else f"f32[T, {HIDDEN}]"
    weights = f', w: f32[{experts}, 6, {HIDDEN}] = weight("w")'
    weights += f', b: f32[{experts}, 6] = weight("b")' if bias else ""
    return (
        f"def main(x: {x}, index: i32[T, {k}]{weights}) -> f32[T, {k}, 6]:\n"
        f"    y: f32[T, {k}, 6] = expert_linear(x, index, w{', b' if bias else ''})\n"
        "    return y\n"
    )


def form(beside: Beside) -> str:
    return beside.program.nodes[-1].form


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
def test_every_expert_on_every_token(act: str, bias: bool) -> None:
    """Indices outside of the experts choose none, as in a shard of them."""
    beside = Beside(module(mixture(4, 2, act=act, bias=bias)))
    assert form(beside) == f"every expert, on every token: up to {2 * ROWS} are chosen of 4"
    beside.run(4, 2e-4)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_few_tokens_gather_their_experts(bias: bool) -> None:
    beside = Beside(module(mixture(80, 2, bias=bias)))
    assert form(beside) == f"the chosen experts, gathered: up to {2 * ROWS} are chosen of 80"
    beside.run(4, 2e-4)


def chosen(source: str, elem: str) -> str:
    """``mixture`` behind a router."""
    route = "    share, index = route(logits, k=2)\n    y:"
    operands = f"index: i32[T, 2], share: {elem}[T, 2]"
    return source.replace(operands, f"logits: {elem}[T, 4]").replace("    y:", route)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_where_the_library_has_a_layer_for_them_it_is_used(bias: bool) -> None:
    beside = Beside(module(chosen(mixture(4, 2, "bf16", bias), "bf16")), experts=True)
    assert "MoE" in [type(p.layer).__name__ for p in beside.network.layers]
    beside.run(4, 6e-2)


NOT_SAID = {
    "f32": chosen(mixture(4, 2), "f32"),
    "another gate": chosen(mixture(4, 2, "bf16", act="gelu"), "bf16"),
    "choices that no router made": mixture(4, 2, "bf16"),
}


@pytest.mark.parametrize("name", NOT_SAID)
def test_what_the_layer_does_not_say_are_products(name: str) -> None:
    beside = Beside(module(NOT_SAID[name]), experts=True)
    assert "MoE" not in [type(p.layer).__name__ for p in beside.network.layers]
    beside.run(2, 6e-2)


@pytest.mark.parametrize("experts", [4, 80], ids=["dense", "gathered"])
@pytest.mark.parametrize("each", [False, True], ids=["a row a token", "a row a choice"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_a_product_that_tokens_choose(experts: int, each: bool, bias: bool) -> None:
    Beside(module(one(experts, 2, each, bias))).run(4, 2e-4)


ROUTED = (
    f"def main(x: f32[T, {HIDDEN}], logits: f32[T, 4], "
    f'w: f32[4, {INNER}, {HIDDEN}] = weight("w"), v: f32[4, 6, {INNER}] = weight("v"), '
    'b: f32[4, 6] = weight("b")) -> f32[T, 2, 6]:\n'
    "    share, index = route(logits, k=2)\n"
    "    inner = expert_linear(x, index, w)\n"
    "    y = expert_linear(inner, index, v, b)\n"
    "    return y\n"
)


def test_choices_of_a_router_differ_so_each_expert_has_one_row_a_token() -> None:
    beside = Beside(module(ROUTED))
    beside.run(4, 2e-4)
    made = {p.outputs[0].dims for p in beside.network.layers if isinstance(p.layer, MatrixMultiply)}
    assert {str(dims[1]) for dims in made if dims[0] == 4} == {"T"}


@pytest.mark.parametrize("experts", [4, 80], ids=["dense", "gathered"])
def test_experts_in_bf16(experts: int) -> None:
    Beside(module(mixture(experts, 2, "bf16"))).run(3, 6e-2)


def test_quantized_experts() -> None:
    source = mixture(4, 2)
    for name, last in (("gate_up", HIDDEN), ("down", INNER)):
        source = source.replace(
            f', {last}] = weight("{name}")', f', {last}] = quantize(weight("{name}"), i8g8)'
        )
    source = "i8g8 = quant(i8, group=8, scale=f16)\n" + source.replace("up: f32", "up: i8g8").replace(
        "down: f32", "down: i8g8"
    )
    beside = Beside(module(source))
    assert {str(t.elem) for t in beside.network.weights} == {"i8", "f32"}
    beside.run(3, 2e-3)


ROUTERS = {
    "softmax": "k=2",
    "normalized": "k=2, normalize=True, scale=2.5",
    "sigmoid in groups": "k=2, score='sigmoid', groups=4, top_groups=2, best=2, normalize=True",
    "one group": "k=1, score='softmax', groups=2, top_groups=1, best=1",
    "softplus": "k=3, score='sqrt_softplus', by_logits=True",
}


def router(name: str, bias: bool) -> str:
    k = int(ROUTERS[name][2])
    weight, given = (', b: f32[8] = weight("b")', ", b") if bias else ("", "")
    return (
        f"def main(x: f32[T, 8]{weight}) -> (f32[T, {k}], i32[T, {k}]):\n"
        f"    share, index = route(x{given}, {ROUTERS[name]})\n"
        "    return share, index\n"
    )


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("name", ROUTERS)
def test_routers(name: str, bias: bool) -> None:
    Beside(module(router(name, bias))).run(4, 2e-5)


BUILT = {
    "dense": mixture(4, 2, "bf16", bias=True),
    "gathered": mixture(80, 2, "f16"),
    "picked": one(4, 2, each=True, bias=True),
    "routed": ROUTED,
    **{name: router(name, bias=True) for name in ROUTERS},
}


@pytest.mark.tensorrt
@pytest.mark.parametrize("name", BUILT)
def test_the_library_builds_them(name: str) -> None:
    (segment,) = lower(module(BUILT[name]), split=False).segments
    assert refusal(segment.network) is None
