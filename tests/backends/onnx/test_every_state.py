"""State of every kind in ONNX Runtime: idle slots keep theirs, new sequences begin with none."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")

from irloom.backends.artifact import EngineReader
from irloom.backends.core import Limits, backend
from irloom.backends.onnx.engine import OnnxEngine
from irloom.zoo.serve import Script, serve
from tests.backends.kinds import NAMES, model

TOLERANCE = 2e-5
PROMPTS = (5, 19, 1, 14, 3)


@pytest.mark.parametrize("kind", NAMES)
def test_sequences_join_decode_give_way_and_resume(kind: str, tmp_path: Path) -> None:
    """Each that arrives goes before those that run: with two slots these lose theirs."""
    written, draw = model(kind), torch.Generator().manual_seed(4)
    texts = [torch.randint(40, (30 + i,), generator=draw) for i, _ in enumerate(PROMPTS)]
    scripts = [
        Script(text, prompt, written.logits(text), arrives=4 * i, priority=-i)
        for i, (text, prompt) in enumerate(zip(texts, PROMPTS, strict=True))
    ]
    folder = written.build("onnx", tmp_path / "engine")
    for slots in (4, 2):
        limits = Limits(max_tokens=7, max_seqs=slots, threads=1)
        engine = backend("onnx").open(EngineReader(folder), limits)
        assert isinstance(engine, OnnxEngine)
        served = serve(engine, scripts)
        assert served.error < TOLERANCE, served.where
        assert served.preemptions
