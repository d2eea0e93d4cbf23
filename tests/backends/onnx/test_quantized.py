"""Quantized weights: by blocks in front of their product, which ONNX Runtime joins into one kernel."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")

from irloom.backends.onnx import export  # noqa: E402
from irloom.ir.checkpoint import RandomCheckpoint  # noqa: E402
from irloom.ir.interp import Interpreter  # noqa: E402
from irloom.ir.parse import parse  # noqa: E402

SCHEMES = {
    "four bits": "quant(i4, group=32, scale=bf16)",
    "four bits with a zero": "quant(u4, group=32, scale=f16, zero=u4)",
    "four bits with a zero between": "quant(u4, group=32, scale=f32, zero=f32)",
    "eight bits": "quant(i8, group=64, scale=f32)",
    "eight bits, a scale a row": "quant(i8, group=0, scale=f32)",
    "groups of no kernel": "quant(i8, group=48, scale=f32)",
}
WIDE = 192
PROGRAM = """# irloom 1
T: dim[1, 64]; S: dim[1, 8]
q = {scheme}

def main(ids: i32[T], x: f32[T, {wide}], w: q[24, {wide}] = quantize(weight("w"), q)):
    y = {statement}
    return y
"""
CHECKPOINT = RandomCheckpoint(0, {"w": (24, WIDE), "e": (3, 24, WIDE)})


def both(text: str, folder: Path, **options: str) -> tuple[np.ndarray[Any, Any], torch.Tensor, list[str]]:
    """What ONNX Runtime and the interpreter give, and the operators that ONNX Runtime runs."""
    m = parse(text)
    found = export(m, CHECKPOINT, folder)
    g = torch.Generator().manual_seed(0)
    given = {"ids": torch.tensor([5, 0, 23, 7, 2], dtype=torch.int32), "x": torch.randn(5, WIDE, generator=g)}
    session = ort.SessionOptions()
    session.log_severity_level, session.optimized_model_filepath = 3, str(folder / "optimized.onnx")
    for key, value in options.items():
        session.add_session_config_entry(f"session.{key}", value)
    run = ort.InferenceSession(found.path, session, providers=["CPUExecutionProvider"])
    (made,) = run.run(None, {k: v.numpy() for k, v in given.items() if k in found.inputs})
    (wanted,) = Interpreter(m, CHECKPOINT)(given["ids"], given["x"])
    ran = onnx.load(folder / "optimized.onnx", load_external_data=False)
    return made, wanted, [n.op_type for n in ran.graph.node]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_product_with_a_quantized_weight(scheme: str, tmp_path: Path) -> None:
    text = PROGRAM.format(scheme=SCHEMES[scheme], wide=WIDE, statement="linear(x, w)")
    made, wanted, ran = both(text, tmp_path, qdq_matmulnbits_accuracy_level="1")
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)
    assert ("MatMulNBits" in ran) == (scheme != "groups of no kernel"), ran


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_of_a_quantized_table(scheme: str, tmp_path: Path) -> None:
    text = PROGRAM.format(scheme=SCHEMES[scheme], wide=WIDE, statement="embedding(ids, w, elem=f32)")
    made, wanted, _ = both(text, tmp_path)
    np.testing.assert_allclose(made, wanted, rtol=1e-6, atol=1e-6)


EXPERTS = """# irloom 1
T: dim[1, 64]; S: dim[1, 8]
q = {scheme}

def main(ids: i32[T], x: f32[T, {wide}], w: q[3, 24, {wide}] = quantize(weight("e"), q)):
    a = reshape(ids, dims=(T, 1))
    i = mod(a, 4)
    y = expert_linear(x, i, w)
    return y
"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_experts_with_quantized_weights(scheme: str, tmp_path: Path) -> None:
    """One of four choices names no expert."""
    made, wanted, _ = both(EXPERTS.format(scheme=SCHEMES[scheme], wide=WIDE), tmp_path)
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)


def test_a_scheme_without_an_operator_is_refused(tmp_path: Path) -> None:
    from irloom.ir.errors import IRError

    scheme = "quant(f8e4m3, group=0, scale=f32)"
    text = PROGRAM.format(scheme=scheme, wide=WIDE, statement="linear(x, w)")
    with pytest.raises(IRError, match=r"onnx: `w` is f8e4m3"):
        export(parse(text), CHECKPOINT, tmp_path)
