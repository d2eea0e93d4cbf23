"""What an export leaves on disk: a model that other tools open, and weights that are read where they lie."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")

from irloom.backends.onnx import Exported, Style, export, lower, text  # noqa: E402
from irloom.backends.onnx.expressed import networks  # noqa: E402
from irloom.ir.checkpoint import RandomCheckpoint  # noqa: E402
from irloom.ir.parse import parse  # noqa: E402
from tests.backends.onnx import large  # noqa: E402

PROGRAM = """# irloom 1
T: dim[1, 64]; S: dim[1, 8]; P: dim[1, 8]

def layer(
    x: f32[T, 16],
    seqs: seqs[T, S],
    kv: paged[f32, 64][P, 1, 8],
    w: f32[16, 16] = weight("model.layers.{i}.self_attn.q_proj.weight"),
    k: f32[8, 16] = weight("model.layers.{i}.self_attn.k_proj.weight"),
    ln: f32[16] = affine(weight("model.layers.{i}.norm.weight"), 1.0, 1.0),
):
    h = rms_norm(x, ln)  # norm
    q0 = linear(h, w)  # self_attn.q_proj
    q = reshape(q0, dims=(T, 2, 8))  # self_attn
    k0 = linear(h, k)  # self_attn.k_proj
    k1 = reshape(k0, dims=(T, 1, 8))  # self_attn
    kv1 = kv_append(kv, k1, k1, seqs)  # self_attn
    a = paged_attention(q, kv1, seqs, scale=0.3)  # self_attn
    out0 = reshape(a, dims=(T, 16))  # self_attn
    out = add(x, out0)  # x.py:20
    return out, kv1

def main(ids: i32[T], seqs: seqs[T, S], kv: caches[2], embed: f32[40, 16] = weight("model.embed.weight")):
    x = embedding(ids, embed)  # model.embed
    for i in range(2):
        x, kv[i] = layer[i](x, seqs, kv[i])  # model.layers.{i}
    last = last_rows(x, seqs)
    logits = linear(last, embed)  # lm_head
    return logits, kv
"""
DIMS = {
    "model.embed.weight": (40, 16),
    **{f"model.layers.{i}.self_attn.q_proj.weight": (16, 16) for i in range(2)},
    **{f"model.layers.{i}.self_attn.k_proj.weight": (8, 16) for i in range(2)},
    **{f"model.layers.{i}.norm.weight": (16,) for i in range(2)},
}
CHECKPOINT = RandomCheckpoint(0, DIMS)


@pytest.fixture
def found(tmp_path: Path) -> Exported:
    return export(parse(PROGRAM), CHECKPOINT, tmp_path)


def test_inputs_and_outputs_have_the_names_of_a_step(found: Exported) -> None:
    assert {name: str(t) for name, t in found.inputs.items()} == {
        "ids": "i32[T]",
        "past": "i32[B]",
        "pad": "i32[B, N]",
        "unpad": "i32[T]",
        "last": "i32[S]",
        **{f"kv_{i}.{part}": "f32[B, 1, L, 8]" for i in range(2) for part in "kv"},
    }
    assert list(found.outputs) == ["logits", *(f"kv_{i}.{part}.out" for i in range(2) for part in "kv")]


def test_nodes_are_called_by_their_modules(found: Exported) -> None:
    names = {n.name for n in onnx.load(found.path, load_external_data=False).graph.node}
    assert {
        "model/embed/Gather",
        "model/layers.1/norm/RMSNormalization",
        "model/layers.1/self_attn/q_proj/Gemm",
        "model/layers.1/self_attn/Attention",
        "model/layers.0/self_attn/TensorScatter_1",
        "model/layers.0/Add",
        "lm_head/Gemm",
    } <= names


def test_the_model_is_what_the_checker_takes_with_the_types_of_all_values(found: Exported) -> None:
    onnx.checker.check_model(str(found.path), full_check=True)
    graph = onnx.load(found.path, load_external_data=False).graph
    known = {v.name for v in (*graph.value_info, *graph.output) if v.type.tensor_type.HasField("shape")}
    assert known >= {name for n in graph.node for name in n.output}


def test_weights_are_a_safetensors_file_of_which_the_model_names_byte_ranges(found: Exported) -> None:
    stored = load_file(found.path.parent / "weights.safetensors")
    graph = onnx.load(found.path, load_external_data=False).graph
    weights = {
        t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer if t.external_data
    }
    assert set(weights) == set(stored) == set(DIMS)
    raw = (found.path.parent / "weights.safetensors").read_bytes()
    for name, at in weights.items():
        start, length = int(at["offset"]), int(at["length"])
        assert raw[start : start + length] == stored[name].numpy().tobytes(), name
    assert min(int(at["offset"]) for at in weights.values()) % 4096 == 0
    norm = "model.layers.1.norm.weight"
    assert torch.equal(stored[norm], CHECKPOINT.read(norm) + 1)
    assert torch.equal(stored["model.embed.weight"], CHECKPOINT.read("model.embed.weight"))


def test_constant_parts_are_folded_and_dead_ones_are_gone(tmp_path: Path) -> None:
    m = parse(
        """# irloom 1
T: dim[1, 64]; S: dim[1, 8]

def main(x: f32[T, 8], w: f32[8, 8] = weight("w"), unused: f32[8, 8] = weight("u")):
    ten = arange(stop=8, elem=f32)
    more = exp(ten)
    y = add(x, more)
    dead = linear(x, unused)
    z = linear(y, w)
    return z
"""
    )
    found = export(m, RandomCheckpoint(0, {"w": (8, 8), "u": (8, 8)}), tmp_path)
    assert dict(found.operators) == {"Add": 1, "Gemm": 1}
    assert set(load_file(tmp_path / "weights.safetensors")) == {"w"}


@pytest.mark.parametrize("elem", ["bf16", "f16"])
def test_a_model_may_compute_in_another_element(elem: str, tmp_path: Path) -> None:
    """Rotation and masks are made of f32 numbers; the model is in its own element all the same."""
    text = PROGRAM.replace("f32", elem).replace(f"paged[{elem}", "paged[f32")
    text = text.replace("kv_append(kv, k1", "kv_append(kv, k2").replace(
        "    kv1 =", "    at = positions(seqs)\n    k2 = rope(k1, at)\n    kv1 ="
    )
    found = export(parse(text), CHECKPOINT, tmp_path)
    onnx.checker.check_model(str(found.path), full_check=True)
    assert {str(t.elem) for name, t in found.outputs.items() if name == "logits"} == {elem}
    assert found.operators["RotaryEmbedding"] == 2


def test_each_op_is_told_with_the_operators_that_compute_it() -> None:
    told = {e.op: (e.how, e.layers) for e in networks(lower(parse(PROGRAM))).ops}
    assert told["linear"] == ("native", ("Gemm",))
    assert told["kv_append"] == ("native", ("TensorScatter",))
    assert told["paged_attention"] == ("native", ("Attention",))
    gated = parse(PROGRAM.replace("add(x, out0)  # x.py:20", "silu(out0)  # x.py:20"))
    (silu,) = (e for e in networks(lower(gated)).ops if e.op == "silu")
    assert (silu.how, silu.nodes, silu.layers) == ("composed", 2, ("Sigmoid", "Mul"))
    assert "ONNX Runtime spells Swish out" in silu.form
    shared = networks(lower(parse(PROGRAM), Style(attention="products")))
    (attention,) = (e for e in shared.ops if e.op == "paged_attention")
    assert "Softmax" in attention.layers
    assert "queries share the keys" in attention.form


def test_a_program_as_text_needs_no_weights() -> None:
    shown = text(parse(PROGRAM))
    assert '["model/layers.0/self_attn/Attention"]' in shown
    assert 'opset_import: ["" : 24]' in shown


def test_a_large_model_is_written_a_weight_at_a_time(tmp_path: Path) -> None:
    """Twelve weights of 8 MiB each: of them a few are in memory at once."""
    command = [sys.executable, large.__file__, str(tmp_path)]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    weight = large.ROWS * large.WIDE * 4
    assert (tmp_path / "weights.safetensors").stat().st_size > large.WEIGHTS * weight
    assert int(made.stdout) < 5 * weight
