"""What a mixture of experts comes to: the router with its norm in one launch, the experts with their sum."""

from .serving import Model


def launches(name: str) -> list[str]:
    """The launches of a model's layers: what each writes and reads."""
    program = Model.of(name).program()
    assert not {"moe", "route", "expert_linear"} & set(program.fallbacks)
    return [str(s) for f in program.functions.values() for s in f.launches]


def test_a_layer_takes_its_norm_into_the_router_and_its_sum_into_the_experts():
    made = launches("qwen3_moe")
    (router,) = (s for s in made if s.startswith("norm_route"))
    (experts,) = (s for s in made if s.startswith("moe"))
    normed, weights, index, x = router.removeprefix("norm_route(").split(", ")[:4]
    assert experts.split(", ")[1:4] == [normed, index, weights]
    assert f", {x}, act='silu'" in experts, "the residual is what the norm reads"


def test_experts_with_a_gate_of_their_own_are_two_products_and_a_sum():
    made = [s.split("(")[0] for s in launches("gpt_oss")]
    at = made.index("expert_linear")
    assert made[at - 1] == "norm_route"
    assert {"expert_linear", "weighted_sum"} <= set(made[at + 1 :])
