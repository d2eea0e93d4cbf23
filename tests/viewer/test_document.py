"""The data of a page: each distinct thing once, every state of the program to be read back from it."""

import json

import pytest

from irloom import parse, run_pipeline
from irloom.ir.cost import step_cost
from irloom.ir.device import device
from irloom.passes import Record
from irloom.viewer import Settings, document
from irloom.viewer.html import to_json

TEXT = """
T: dim[1, 64]

def main(x: f32[T, 8], gate: f32[16, 8] = weight("gate"), up: f32[16, 8] = weight("up")) -> f32[T, 16]:
    g: f32[T, 16] = linear(x, gate)  # mlp.gate modeling.py:7
    u: f32[T, 16] = linear(x, up)  # mlp.up modeling.py:8
    s: f32[T, 16] = silu(g)  # mlp modeling.py:9
    y: f32[T, 16] = mul(s, u)  # mlp modeling.py:9
    return y
"""


@pytest.fixture
def fused():
    return run_pipeline(parse(TEXT), "fuse-mlp")[1]


def test_a_state_more_than_steps(data, record):
    assert len(data["states"]) == len(record.steps) + 1
    assert [s["text"] for s in data["steps"]] == [s.text for s in record.steps]
    assert data["states"][0]["nodes"] > 5 * data["states"][-1]["nodes"], "layers became functions"


def functions(m):
    return [str(f) for f in m.funcs.values()]


def test_what_a_pass_leaves_alone_is_stored_once(data, record):
    tables = data["tables"]
    assert len(tables["stmts"]) < sum(state["nodes"] for state in data["states"]) / 2
    same = [i for i, s in enumerate(record.steps) if functions(s.before) == functions(s.after)]
    assert same, "some pass of the pipeline finds nothing in this model"
    for i in same:
        assert data["states"][i]["funcs"] == data["states"][i + 1]["funcs"]


def test_every_reference_is_in_its_table(data):
    tables = data["tables"]
    for f in (tables["funcs"][ref] for state in data["states"] for ref in state["funcs"]):
        assert max(f["body"]) < len(tables["stmts"])
        assert max(f["params"]) < len(tables["params"])
    for row in tables["stmts"]:
        if row[0] == 0:
            _, op, _, attrs, results, *texts, cost = row
            assert op < len(tables["ops"])
            assert attrs < len(tables["attrs"])
            assert cost < len(tables["costs"])
            assert all(t < len(tables["types"]) for _, t, _ in results)
            assert all(t < len(tables["strings"]) for t in texts)


def test_a_node_with_all_that_is_known_of_it(fused):
    data = document(fused)
    tables, text = data["tables"], data["tables"]["strings"]
    _, op, args, attrs, results, path, line, made_by, cost = next(
        row for row in tables["stmts"] if text[row[4][0][0]] == "s"
    )
    assert tables["ops"][op]["signature"] == "~b -> ~b"
    assert [text[a] for a in args] == ["g"]
    assert tables["attrs"][attrs] == []
    assert tables["types"][results[0][1]]["text"] == "f32[T, 16]"
    assert (text[path], text[line], text[made_by]) == ("mlp", "modeling.py:9", "")
    assert cost >= 0


def test_weights_come_with_their_expression(fused):
    data = document(fused)
    text = data["tables"]["strings"]
    exprs = {text[name]: text[weight] for name, _, _, weight in data["tables"]["params"]}
    assert exprs["x"] == ""
    assert exprs["gate"] == 'weight("gate")'
    assert exprs["gate_up_weight"] == 'concat(weight("gate"), weight("up"), dim=0)'


def test_marks_say_what_became_of_a_node(fused):
    (step,) = document(fused)["steps"]
    before, after = (
        {name: (kind, twin) for name, kind, twin in step[side]["main"]} for side in ("before", "after")
    )
    assert before["s"][0] == "removed"
    assert after["y"] == ("replaced", "main.y")
    assert before["y"] == ("replaced", "main.y")
    assert "gate_up" in after


def test_a_buffer_is_no_mark(data):
    placed = data["steps"][-1]
    assert placed["name"] == "plan-memory"
    assert placed["changes"]
    assert placed["after"] == {}


def test_a_node_says_which_pass_made_it(fused):
    tables = document(fused)["tables"]
    made = {tables["ops"][row[1]]["name"]: tables["strings"][row[7]] for row in tables["stmts"]}
    assert made["silu_mul"] == "fuse-mlp"
    assert made["silu"] == ""


def test_costs_are_those_of_the_program(data, record):
    """The nodes of the last state, as often as they run, cost what the plan says of a step."""
    last = record.steps[-1].after
    tables, state = data["tables"], data["states"][-1]
    for k, work in enumerate(data["workloads"]):
        runs = {f.name: 0 for f in last.funcs.values()}
        runs["main"] = 1
        for call, _, _ in last.calls():
            runs[call.callee] += 1
        flops = 0
        for ref in state["funcs"]:
            f = tables["funcs"][ref]
            rows = [tables["stmts"][s] for s in f["body"]]
            flops += runs[f["name"]] * sum(tables["costs"][row[8]][4 * k] for row in rows if row[0] == 0)
        assert flops == step_cost(last, work["tokens"], work["seqs"], work["context"]).flops


def test_without_a_device_there_are_no_times(fused):
    data = document(fused)
    assert data["device"] is None
    assert {row[2] for row in data["tables"]["costs"]} == {None}
    on = document(fused, Settings(device=device("h200")))
    assert all(row[2] is not None for row in on["tables"]["costs"])


def test_caches_quantization_and_sharding_are_said_in_words():
    m = parse("""
T: dim[1, 64]; S: dim[1, 8]; P: dim[1, 99]; mesh(tp=2)
i4g32 = quant(i4, group=32, scale=f16)

def main(
    x: bf16[T, 64],
    seqs: seqs[T, S],
    kv: paged[bf16, 16, 512][P, 1, 64],
    w: i4g32[64@tp, 64] = weight("w"),
) -> bf16[T, 64@tp]:
    y: bf16[T, 64@tp] = linear(x, w)
    return y
""")
    notes = {row["text"]: row["notes"] for row in document(m)["tables"]["types"]}
    assert notes["paged[bf16, 16, 512][P, 1, 64]"] == [
        "a cache of bf16 in pages of 16 tokens; the last 512 tokens stay readable"
    ]
    assert notes["i4g32[64@tp, 64]"] == [
        "i4g32: i4 values, groups of 32 along the last dim share a scale in f16",
        "dim 0 is split over mesh axis tp",
    ]


def test_errors_of_values_belong_to_their_step(fused):
    (step,) = document(fused, errors={0: {("main", "y"): 1.25e-7}})["steps"]
    assert step["errors"] == {"main": [("y", 1.25e-7)]}


def test_an_empty_record_has_no_program():
    with pytest.raises(ValueError, match="no steps"):
        document(Record())


def test_a_program_alone_is_a_page_without_passes():
    data = document(parse(TEXT))
    assert (len(data["states"]), data["steps"]) == (1, [])


def test_json_cannot_end_its_element():
    text = to_json({"name": "</script><script>alert(1)</script><!-- & \u2028"})
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text)["name"] == "</script><script>alert(1)</script><!-- & \u2028"
