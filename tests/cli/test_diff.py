"""`irloom diff`: two texts, two engines, or what passes make of one model."""

import pytest

MLP = """# irloom 1
def main(g: f32[T, 8], u: f32[T, 8]):
    s = silu(g)
    y = mul(s, u)
    return y
"""


@pytest.fixture
def texts(tmp_path):
    """Two programs on disk that differ in one op, and a third that differs in names alone."""
    one, other, third = (tmp_path / f"{name}.irloom" for name in ("one", "other", "third"))
    one.write_text(MLP)
    other.write_text(MLP.replace("silu", "gelu"))
    third.write_text(MLP.replace("s =", "act =").replace("(s,", "(act,"))
    return one, other, third


def test_it_exits_as_diff_does(irloom, texts, tmp_path):
    one, other, third = texts
    assert irloom("diff", one, third).code == 0
    assert irloom("diff", one, third).out == ""
    assert irloom("diff", one, other).code == 1
    trouble = irloom("diff", one, tmp_path / "none")
    assert trouble.code == 2
    assert trouble.err.startswith("error: ") and "no such file" in trouble.err


def test_lines_say_what_was_and_what_is(irloom, texts):
    one, other, _ = texts
    assert irloom("diff", one, other).out == (
        "main: 1 replaced\n  - s: f32[T, 8] = silu(g)\n  ! s: f32[T, 8] = gelu(g)\n"
    )


def test_a_program_without_main_is_compared_but_takes_no_pass_that_needs_one(irloom, tmp_path):
    one, other = tmp_path / "one.irloom", tmp_path / "other.irloom"
    one.write_text(MLP.replace("main", "layer"))
    other.write_text(MLP.replace("main", "layer").replace("silu", "gelu"))
    assert irloom("diff", one, other).out.startswith("layer: 1 replaced\n")
    told = irloom("diff", one).err
    assert told.startswith("error: the program has no function `main`, only layer\n")
    assert told.endswith("  --> in pass outline\n")
    told = irloom("dump", one, "--layer", 1, "--pipeline", "")
    assert told.err == "error: the program: no layer 1\nhint: its layers are not outlined here\n"


def test_what_is_returned_counts(irloom, tmp_path):
    one, other = tmp_path / "one.irloom", tmp_path / "other.irloom"
    one.write_text(MLP.replace("return y", "return y, s"))
    other.write_text(MLP.replace("return y", "return s, y"))
    told = irloom("diff", one, other)
    assert (told.code, told.out) == (1, "main\n  - return y, s\n  ! return s, y\n")


def test_json(irloom, texts):
    one, other, _ = texts
    told = irloom("diff", one, other, "--json")
    assert told.code == 1
    (main,) = told.json["functions"]
    assert (told.json["same"], main["replaced"], main["changes"][0]["new"]["op"]) == (False, 1, "gelu")


def test_a_pass_of_a_model_says_what_it_made(irloom, model):
    told = irloom("diff", model, "--pass", "fuse-mlp")
    assert told.code == 1
    assert "layer: 3 added, 5 removed, 1 replaced\n" in told.out
    made = [line for line in told.out.splitlines() if "silu_mul(" in line]
    assert len(made) == 1 and made[0].startswith("  ! ") and made[0].endswith("[fuse-mlp]")


def test_between_stages(irloom, model):
    told = irloom("diff", model, "--from", "canonicalize:2", "--to", "outline")
    assert "layer: a new function" in told.out
    assert " moved from main to layer\n" in told.out
    assert irloom("diff", model, "--from", "raise", "--to", "canonicalize").code == 0  # nothing was left
    assert irloom("diff", model, "--from", "trace", "--to", "trace").code == 0


def test_over_several_passes_each_removal_names_its_own(irloom, model):
    found = irloom("diff", model, "--from", "outline", "--to", "fuse-mlp", "--json").json
    (layer,) = [f for f in found["functions"] if f["new"] == "layer"]
    gone = {c["old"]["name"]: c["removed_by"] for c in layer["changes"] if c["kind"] == "removed"}
    assert gone["v_proj"] == gone["k_proj_weight"] == "fuse-qkv"
    assert gone["up_proj"] == gone["gate_proj_weight"] == "fuse-mlp"
    assert set(gone.values()) == {"fuse-qkv", "fuse-mlp"}
    found = irloom("diff", model, "--from", "trace", "--to", "fuse-mlp", "--json").json
    (main,) = [f for f in found["functions"] if f["new"] == "main"]
    gone = [c["removed_by"] for c in main["changes"] if c["kind"] == "removed"]
    assert {"raise", "fuse-qkv", "fuse-mlp"} <= set(gone), "in the trace every node is in main"


def test_an_engine_and_the_model_it_was_built_from(irloom, model, engine):
    assert irloom("diff", engine, model).code == 0
    assert irloom("diff", engine, model, "--to", "kv-cache").code == 1, "of the model alone: it is a stage"


def test_a_pass_that_is_added_or_left_out_shows(irloom, model):
    assert "quantize" in irloom("diff", model, "--pass", "quantize", "--with", "quantize").out
    told = irloom("diff", model, "--pass", "fuse-mlp", "--without", "fuse-mlp")
    assert told.code == 2
    assert told.err.startswith("error: the pipeline has no pass 'fuse-mlp'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pass", "outline", "--to", "raise"), "--pass is from before it to after it"),
        (("--pass", "canonicalize:3"), "canonicalize runs 2 times"),
        (("--from", "99"), "no stage 99: the pipeline has "),
    ],
)
def test_what_cannot_be_asked(irloom, model, options, message):
    told = irloom("diff", model, *options)
    assert told.code != 0 and message in told.err
