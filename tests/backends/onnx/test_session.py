"""What is lacking, too old, or no model at all is said in words, with what to do about it."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")

from irloom.backends.artifact import MANIFEST, SEAL, EngineReader
from irloom.backends.core import Limits, backend
from irloom.backends.onnx.session import BUILD, RUN, lacking, need, numbers
from irloom.ir.errors import EngineMismatch
from irloom.zoo.models import Specimen

from .test_engine import build

LIMITS = Limits(max_tokens=8, max_seqs=2, max_context=64, threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(Specimen.of("gpt2"), tmp_path_factory.mktemp("engine") / "gpt2")


def test_packages_that_are_absent_or_too_old_are_named():
    assert lacking(BUILD | RUN) is None
    assert lacking({"no-such-package": "2.0", "numpy": "1.0"}) == "no-such-package 2.0 or newer"
    assert (lacking({"numpy": "999.1"}) or "").startswith("numpy 999.1 or newer, not ")
    with pytest.raises(EngineMismatch, match="target onnx needs no-such-package 2") as error:
        need({"no-such-package": "2.0"})
    assert error.value.hint == "pip install 'irloom[onnx]'"


def test_versions_are_compared_by_number():
    assert numbers("1.9") < numbers("1.25.0rc1") < numbers("1.31")


def test_a_model_that_onnx_runtime_does_not_open_is_refused(folder: Path, tmp_path: Path):
    """Such as one of an opset to come, sealed as if it had been built so."""
    import onnx

    copy = shutil.copytree(folder, tmp_path / "engine")
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    model.opset_import[0].version = 999
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    seal(copy, "model.onnx")
    with pytest.raises(EngineMismatch, match=r"ONNX Runtime .* does not open it: .*999") as error:
        backend("onnx").open(EngineReader(copy), LIMITS)
    assert "build it again" in (error.value.hint or "")


def seal(folder: Path, part: str) -> None:
    """Let the manifest say that a part is as it is now."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_bytes())
    raw = (folder / part).read_bytes()
    manifest["parts"][part] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    text = json.dumps(manifest, indent=1).encode()
    path.write_bytes(text)
    (folder / SEAL).write_text(hashlib.sha256(text).hexdigest() + "\n", encoding="utf-8")


def test_any_byte_that_differs_is_refused(folder: Path, tmp_path: Path):
    copy = shutil.copytree(folder, tmp_path / "engine")
    draw, files = random.Random(2), sorted(p for p in copy.rglob("*") if p.is_file())
    assert {"model.onnx", "weights.safetensors"} <= {p.name for p in files}
    for file in files:
        before = file.read_bytes()
        for at in draw.sample(range(len(before)), 8):
            file.write_bytes(before[:at] + bytes([before[at] ^ 1 << draw.randrange(8)]) + before[at + 1 :])
            with pytest.raises(EngineMismatch):
                EngineReader(copy)
        file.write_bytes(before)
    EngineReader(copy)
