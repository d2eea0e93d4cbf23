"""What a mixture of experts comes to: the router with its norm in one launch, the experts with their sum."""

from irloom.backends.cuda.lower import lower
from irloom.ir.parse import parse

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
    assert f", {x}, gate=Gate()" in experts, "the residual is what the norm reads"


def test_clamped_gates_between_their_values_are_part_of_the_experts():
    made = launches("gpt_oss")
    assert [s.split("(")[0] for s in made if "mlp" in s] == ["norm_route", "moe"] * 2
    assert "gate=Gate(woven=True, limit=7.0" in next(s for s in made if s.startswith("moe"))


def test_shared_experts_end_in_the_residual_stream():
    made = launches("deepseek_v3")
    at = next(i for i, s in enumerate(made) if s.startswith("moe"))
    router, experts, up, down = made[at - 1 : at + 3]
    residual, (total, gated) = router.split(", ")[3], (s.split("(")[1].split(", ")[0] for s in (experts, up))
    assert f"None, None, {residual}, gate" in experts
    assert f", {gated}, " in down and f", None, {total}, None, form=Form(), over={total})" in down
    assert "elementwise" not in " ".join(made[at:]), "nothing is left to add"


ROUTER = """
# irloom 1
T: dim[1, 64]

def main(
    x: bf16[T, 32],
    g: bf16[32] = weight("g"),
    r: bf16[16, 32] = weight("r"),
) -> (bf16[T, 32], bf16[T, 4], i32[T, 4]):
    h: bf16[T, 32] = rms_norm(x, g)
    y: bf16[T, 16] = linear(h, r)
    z: f32[T, 16] = cast(y, to=f32)
    w, i = route(z, k=4, normalize=True)
    v: bf16[T, 4] = cast(w, to=bf16)
    return h, v, i
"""


def test_casts_around_a_router_are_part_of_it():
    (launch,) = lower(parse(ROUTER)).functions["main"].launches
    assert str(launch).startswith("norm_route(h, v, i, x, g, r, None, None, k=4")
    read = ROUTER.replace("bf16[T, 4], i32", "f32[T, 4], i32").replace("return h, v", "return h, w")
    made = lower(parse(read)).functions["main"].launches
    assert str(made[0]).startswith("norm_route(h, w, i"), "weights that something else reads are not cast"


def test_a_router_in_f32_takes_its_norm_along():
    wide = (
        ROUTER.replace("r: bf16", "r: f32")
        .replace("linear(h, r)", "linear(c, r)")
        .replace("cast(y, to=f32)", "y")
    )
    wide = wide.replace("    y: bf16", "    c: f32[T, 32] = cast(h, to=f32)\n    y: f32").replace(
        "    z: f32[T, 16] = y\n", ""
    )
    (launch,) = lower(parse(wide.replace("route(z", "route(y"))).functions["main"].launches
    assert str(launch).startswith("norm_route(h, v, i, x, g, r, None, None, k=4")
