"""Where a pass did not fire, how far it got, and what stopped it: whole texts."""

import pytest

from irloom.ir.errors import PipelineError
from irloom.ir.ops import mul, silu, silu_mul
from irloom.ir.parse import parse
from irloom.passes import Changes, NearMiss, NoMatch, Pass, RewritePass, run_pipeline
from irloom.passes.why import reasons, why

PROGRAM = """def main(g: f32[T, 8], u: f32[T, 8], z: f32[T, 8]):
    s = silu(g)  # layers.0.act x.py:7
    a = mul(s, u)  # layers.0 x.py:8
    r = relu(g)  # layers.1.act x.py:7
    b = mul(r, u)  # layers.1 x.py:8
    t = silu(z)  # layers.2.act x.py:7
    c = mul(t, u)  # layers.2 x.py:8
    k = mul(c, 2)  # layers.2 x.py:9
    return a, s, b, k"""


class FuseMine(RewritePass):
    """Every product with an activation as one op."""

    def match(self, gate, up):
        return mul(silu(gate), up)

    def replace(self, gate, up):
        return silu_mul(gate, up)


def told(*pipeline, program=PROGRAM, name="test-why"):
    _, record = run_pipeline(parse(program), list(pipeline))
    return why(record, name)


def test_the_closest_place_comes_first_with_what_matched_there():
    assert (
        told(FuseMine())
        == """\
test-why: 1 change, 3 places left
  main.a  layers.0 x.py:8
    FuseMine: 2 of 2 ops (mul, silu): s has another reader: return
  main.b  layers.1 x.py:8
    FuseMine: 1 of 2 ops (mul): r is relu, not silu
  main.k  layers.2 x.py:9
    FuseMine: 1 of 2 ops (mul): c is silu_mul, not silu"""
    )


def test_an_op_that_is_nowhere_is_no_places_fault():
    assert (
        told(FuseMine(), program="def main(x: f32[T]):\n    y = mul(x, x)\n    return y")
        == """\
test-why: 0 changes, 0 places left
  no `silu` in the program: FuseMine"""
    )


def test_what_a_rule_declines_comes_before_what_only_almost_matches():
    class Picky(FuseMine):
        def where(self, gate):
            raise NoMatch(f"{gate.name} is not to my taste")

    assert told(Picky()).splitlines()[1:3] == [
        "  main.a  layers.0 x.py:8",
        "    Picky: 2 of 2 ops (mul, silu): s has another reader: return",
    ]
    assert told(Picky()).splitlines()[3:5] == [
        "  main.c  layers.2 x.py:8",
        "    Picky: 2 of 2 ops (mul, silu): z is not to my taste",
    ]


def test_layers_in_which_the_same_happens_are_told_once():
    names = [f"a_{i}" for i in range(5)]
    layers = "\n".join(
        f"    s{i} = relu(g)  # layers.{i}.act x.py:7\n    {name} = mul(s{i}, g)  # layers.{i} x.py:8"
        for i, name in enumerate(names)
    )
    program = f"def main(g: f32[T]):\n{layers}\n    n = silu(g)\n    return n, {', '.join(names)}"
    assert (
        told(FuseMine(), program=program)
        == """\
test-why: 0 changes, 5 places left
  main.a_0  layers.0 x.py:8 (and 4 like it: main.a_1, main.a_2, main.a_3, ...)
    FuseMine: 1 of 2 ops (mul): s0 is relu, not silu"""
    )


def test_a_pass_that_runs_twice_is_told_twice():
    text = told(FuseMine(), "canonicalize", FuseMine())
    assert [line for line in text.splitlines() if line.startswith("test-why")] == [
        "test-why: 1 change, 3 places left",
        "test-why: 0 changes, 3 places left",
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fuse-qkv", "  main\n    it has no attention"),
        ("outline", "  main\n    no nodes are of layers that differ by a number in their paths and weights"),
        ("kv-cache", "  no op of the program looks back at earlier tokens"),
        ("gather-logits", "  main.a\n    main has no operand of type seqs, which says where sequences end"),
        ("absorb-mla", "  nothing here is what it looks for: Attend to latents instead of the keys"),
    ],
)
def test_passes_without_a_pattern_say_what_they_look_for(name, said):
    program = "def main(x: f32[T]):\n    a = silu(x)\n    return a"
    assert said in told(name, program=program, name=name)


def test_json_has_every_rule_of_every_place():
    _, record = run_pipeline(parse(PROGRAM), "fuse-mlp")
    (found,) = reasons(record, "fuse-mlp")
    data = found.to_json()
    assert data["changed"] == ["main.b: FuseActMul", "main.c: FuseSiluMul"]
    assert data["places"][0]["misses"][0] == {
        "place": "main.a", "loc": "layers.0 x.py:8", "rule": "FuseSiluMul",
        "matched": ["mul", "silu"], "of": 2, "reason": "s has another reader: return",
    }  # fmt: skip
    assert [miss["rule"] for miss in data["places"][0]["misses"]] == ["FuseSiluMul", "FuseActMul"]
    assert {"JoinGateUpGelu"} <= {miss["rule"] for miss in data["absent"]}


def test_asking_changes_nothing():
    after, record = run_pipeline(parse(PROGRAM), "fuse-mlp")
    before = str(record.steps[0].before)
    why(record, "fuse-mlp")
    assert str(record.steps[0].before) == before
    assert record.steps[0].after == after


def test_a_pass_that_did_not_run_is_an_error_with_the_nearest_name():
    with pytest.raises(PipelineError) as caught:
        told("canonicalize, fuse-mlp", name="fuse-mpl")
    assert str(caught.value) == "the pipeline has no pass 'fuse-mpl'\nhint: did you mean 'fuse-mlp'?"
    with pytest.raises(PipelineError) as caught:
        told("canonicalize", name="quantize")
    assert str(caught.value) == (
        "the pipeline has no pass 'quantize'\nhint: `--with quantize` adds it; here run canonicalize"
    )


def test_places_whose_reasons_have_other_numbers_are_not_alike():
    class Odd(Pass):
        def run(self, m):
            rows = {"a": 32, "b": 32, "c": 16}
            return Changes([], [NearMiss(f"main.{n}", f"{k} rows", loc="up") for n, k in rows.items()])

    _, record = run_pipeline(parse(PROGRAM), [Odd()])
    (told,) = reasons(record, record.steps[0].name)
    assert [[p.misses[0].reason, *p.like] for p in told.places] == [["32 rows", "main.b"], ["16 rows"]]
