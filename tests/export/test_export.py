"""Programs as graphs for other tools: each format is read back and compared with the program."""

import json
import re
import shutil
import subprocess

import pytest

from irloom.export import FORMATS, export
from irloom.export.core import vertices
from irloom.ir.errors import IRError
from irloom.ir.graph import Module
from irloom.ir.parse import parse
from irloom.passes import run_pipeline

HEAD = """T: dim[1, 64]; S: dim[1, 8]

def main(ids: i32[T], seqs: seqs[T, S], table: f32[16, 8] = weight("model.embed"),
"""


@pytest.fixture(scope="module")
def program() -> Module:
    """Three layers in a loop with caches, an operand that is a number, one that is not there."""
    weights, rows = "", ["x0 = embedding(ids, table)  # model.embed m.py:1"]
    for i in range(3):
        weights += f'    n{i}: f32[8] = weight("model.layers.{i}.n"),\n'
        weights += f'    w{i}: f32[8, 8] = weight("model.layers.{i}.attn.w"),\n'
        at = f"model.layers.{i}"
        rows += [
            f"h{i} = rms_norm(x{i}, n{i})  # {at}.n m.py:2",
            f"q{i} = linear(h{i}, w{i})  # {at}.attn m.py:3",
            f"r{i} = reshape(q{i}, dims=(T, 2, 4))  # {at}.attn m.py:4",
            f"v{i} = neg(r{i})  # {at}.attn m.py:4",
            f"a{i} = attention(r{i}, r{i}, v{i}, seqs, scale=0.5)  # {at}.attn m.py:5",
            f"s{i} = reshape(a{i}, dims=(T, 8))  # {at}.attn m.py:6",
            f"d{i} = mul(s{i}, 2.0)  # {at} m.py:7",
            f"x{i + 1} = add(x{i}, d{i})  # {at} m.py:8",
        ]
    body = "".join(f"    {row}\n" for row in rows)
    m = parse(f"{HEAD}{weights}):\n{body}    return x3\n")
    made, _ = run_pipeline(m, "outline, kv-cache(page=4)")
    assert list(made.funcs) == ["layer", "main"]
    return made


def test_vertices_are_the_statements_and_every_edge_leads_forward(program):
    for f in program.funcs.values():
        found = vertices(f)
        place = {v.id: i for i, v in enumerate(found)}
        assert len(place) == len(found)
        assert all(place[e.source] < place[v.id] for v in found for e in v.reads)
        made = {v.id: v.makes for v in found}
        assert all(made[e.source][e.output] is e.value for v in found for e in v.reads)
    loop = [v for v in vertices(program.main) if v.kind == "call"]
    assert [v.loops for v in loop] == [("x#2",)]


def test_json_is_the_graph_that_networkx_gets(program):
    told = json.loads(export(program, "json"))
    assert (told["format"], told["version"], told["passes"]) == ("irloom-graph", 1, ["outline", "kv-cache"])
    layer = told["functions"][0]
    assert layer["name"] == "layer"
    edges = {(e["source"], e["target"], e["operand"], e["value"]) for e in layer["edges"]}
    theirs = program.to_networkx("layer").edges(data=True)
    assert edges == {(a, b, facts["operand"], facts["value"]) for a, b, facts in theirs}
    (attend,) = [v for v in layer["vertices"] if v["op"] == "paged_attention"]
    assert attend["attrs"] == {"scale": "0.5"}
    assert (attend["path"], attend["place"], attend["made_by"]) == (["attn"], "m.py:5", "kv-cache")
    assert attend["outputs"] == [
        {"name": "a0", "type": "f32[T, 2, 4]", "elem": "f32", "dims": ["T", 2, 4], "buffer": None}
    ]


def test_dot_has_a_vertex_a_line_and_a_cluster_per_module(program):
    text = export(program, "dot", ["layer"])
    assert isinstance(text, str)
    drawn = re.findall(r'^ *"layer/([^"]+)" \[label=', text, re.MULTILINE)
    assert sorted(drawn) == sorted(v.id for v in vertices(program.funcs["layer"]))
    assert text.count(" -> ") == sum(len(v.reads) for v in vertices(program.funcs["layer"]))
    assert 'subgraph "cluster_layer.attn" {' in text
    if dot := shutil.which("dot"):
        drawn = subprocess.run([dot, "-Tsvg"], input=text, capture_output=True, text=True, check=False)
        assert drawn.returncode == 0 and drawn.stderr == ""
        assert drawn.stdout.count('class="node"') == len(vertices(program.funcs["layer"]))


def test_model_explorer_gets_a_collection_of_its_schema(program):
    """The fields are those of `graph_builder` in ai-edge-model-explorer 0.1.34."""
    told = json.loads(export(program, "model-explorer"))
    assert told.keys() == {"label", "graphs"}
    assert [g["id"] for g in told["graphs"]] == ["main", "layer"], "the first graph is the one that opens"
    for graph in told["graphs"]:
        nodes = {n["id"]: n for n in graph["nodes"]}
        for n in graph["nodes"]:
            optional = {"subgraphIds"}
            assert n.keys() - optional == {
                *("id", "label", "namespace", "attrs", "incomingEdges", "outputsMetadata")
            }
            assert all(a.keys() == {"key", "value"} and isinstance(a["value"], str) for a in n["attrs"])
            for e in n["incomingEdges"]:
                outputs = [o["id"] for o in nodes[e["sourceNodeId"]]["outputsMetadata"]]
                assert e["sourceNodeOutputId"] in outputs
    (call,) = [n for n in told["graphs"][0]["nodes"] if n["label"] == "layer"]
    assert call["subgraphIds"] == ["layer"]
    (linear,) = [n for n in told["graphs"][1]["nodes"] if n["label"] == "linear"]
    assert linear["namespace"] == "attn"


class TestOnnx:
    @pytest.fixture
    def model(self, program, tmp_path, monkeypatch):
        """Read back and checked; the checker asks that the file of weights, which nothing reads, be there."""
        onnx = pytest.importorskip("onnx")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "absent").touch()
        read = onnx.load_model_from_string(export(program, "onnx"))
        onnx.checker.check_model(read)
        return read

    def test_main_is_the_graph_with_every_layer_written_out(self, model):
        calls = [n for n in model.graph.node if n.op_type == "layer"]
        assert [n.domain for n in calls] == ["irloom.function"] * 3
        assert [n.name.partition("/x")[0] for n in calls] == [f"model/layers/{i}" for i in range(3)]
        weights = {x.name: list(x.dims) for x in model.graph.initializer}
        assert weights == {
            "model.embed": [16, 8],
            **{f"model.layers.{i}.n": [8] for i in range(3)},
            **{f"model.layers.{i}.attn.w": [8, 8] for i in range(3)},
        }
        made: set[str] = {x.name for x in (*model.graph.input, *model.graph.initializer)}
        for n in model.graph.node:
            assert set(n.input) <= made | {""}
            made |= set(n.output)

    def test_caches_are_renewed_from_layer_to_layer_of_their_own(self, model):
        inputs = {x.name: x.type.denotation for x in model.graph.input}
        caches = {name: said for name, said in inputs.items() if name.startswith("kv[")}
        assert caches == {f"kv[{i}]": "paged[f32, 4][P, 2, 4]" for i in range(3)}
        assert inputs["seqs"] == "seqs[T, S]"
        calls = [n for n in model.graph.node if n.op_type == "layer"]
        assert [[x for x in n.input if x in caches] for n in calls] == [[f"kv[{i}]"] for i in range(3)]
        assert [x.name for x in model.graph.output][1:] == [f"kv[{i}]_1" for i in range(3)]

    def test_a_function_has_its_ops_their_attributes_and_types(self, model):
        (layer,) = model.functions
        ops = {n.op_type: n for n in layer.node}
        assert ops.keys() >= {"rms_norm", "linear", "kv_append", "paged_attention", "Constant", "mul"}
        (scale,) = [a for a in ops["paged_attention"].attribute if a.name == "scale"]
        assert scale.f == 0.5
        facts = {p.key: p.value for p in ops["paged_attention"].metadata_props}
        assert facts == {"irloom.loc": "attn m.py:5", "irloom.made_by": "kv-cache"}
        types = {x.name: x.type.tensor_type for x in layer.value_info}
        dims = [d.dim_param or d.dim_value for d in types[ops["linear"].output[0]].shape.dim]
        assert dims == ["T", 8]

    def test_a_layer_alone_is_the_graph(self, program):
        onnx = pytest.importorskip("onnx")
        read = onnx.load_model_from_string(export(program, "onnx", ["layer"]))
        assert read.graph.name == "layer" and not read.functions
        assert [x.name for x in read.graph.initializer] == ["model.layers.{i}.n", "model.layers.{i}.attn.w"]

    def test_without_the_package_it_says_what_to_install(self, program, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "onnx", None)
        with pytest.raises(IRError, match=r"needs the package onnx\nhint: pip install 'irloom\[onnx\]'"):
            export(program, "onnx")


def test_a_format_that_is_none(program):
    with pytest.raises(IRError, match="no format 'svg'\nhint: there are json, dot, onnx, model-explorer"):
        export(program, "svg")


def test_quantized_weights_and_states_have_a_type_everywhere():
    """An element that a format does not know is told in words."""
    m = parse(
        'i4g8 = quant(i4, group=8, scale=f16)\n\ndef main(x: f32[T, 8], w: i4g8[4, 8] = weight("w")):\n'
        "    y = linear(x, w)\n    return y\n"
    )
    for to in FORMATS:
        if to != "onnx":
            assert "i4g8[4, 8]" in str(export(m, to))
