"""A reproducer runs again what bisect has found; one that is not whole is refused, with the line."""

import re

import pytest
import torch
from safetensors.torch import save_file

from irloom import __version__
from irloom.bisect import bisect_module, rerun
from irloom.ir.checkpoint import SafetensorsCheckpoint
from irloom.ir.errors import IrloomError
from irloom.ir.ops import minimum, silu_mul
from irloom.ir.parse import parse
from irloom.passes import parse_pipeline
from irloom.passes.fuse_mlp import FuseSiluMul
from irloom.passes.reproducer import Reproducer, is_reproducer, read_reproducer
from irloom.passes.session import Session

PROGRAM = """# irloom 1   model: tiny   after: canonicalize
T: dim[1, 64]

def main(x: f32[T, 4], z: f32[T, 4], w: f32[4] = weight("up.weight")) -> f32[T, 4]:
    g: f32[T, 4] = silu(x)  # mlp.act
    u: f32[T, 4] = mul(z, w)  # mlp
    y: f32[T, 4] = mul(g, u)  # mlp
    return y
"""
SESSION = Session(((2, 1), (1, 0)), seed=7)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "found.irloom"
    said = "main.y: FuseSiluMul", "error 1,\n allowed 0"
    Reproducer(parse(PROGRAM), "fuse-mlp(join=false)", *said, SESSION).write(path)
    return path


def digest(path) -> str:
    """The line of the digest."""
    found = re.search("digest: .*", path.read_text())
    assert found
    return found[0]


def edited(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def refused(path, **options) -> str:
    with pytest.raises(IrloomError) as caught:
        read_reproducer(path, **options)
    return str(caught.value).replace(str(path.parent), "DIR")


class TestAFile:
    def test_reads_back_as_it_was_written(self, file):
        made = read_reproducer(file)
        assert made.module == parse(PROGRAM)
        assert (made.pipeline, made.change) == ("fuse-mlp(join=false)", "main.y: FuseSiluMul")
        assert made.session == SESSION
        assert made.failure == "error 1, allowed 0"  # on one line

    def test_is_ir_text_that_every_command_reads(self, file):
        assert is_reproducer(file)
        assert parse(file.read_text()) == parse(PROGRAM)
        plain = file.with_name("plain.irloom")
        plain.write_text(PROGRAM)
        assert not is_reproducer(plain) and not is_reproducer(file.parent)

    def test_nothing_is_left_beside_it(self, file):
        assert [p.name for p in file.parent.iterdir()] == ["found.irloom"]

    def test_what_stood_there_stays_when_writing_fails(self, file, monkeypatch):
        old = file.read_text()
        made = read_reproducer(file)
        monkeypatch.setattr("pathlib.Path.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(IrloomError, match="cannot be written: disk full"):
            made.write(file)
        assert file.read_text() == old
        assert [p.name for p in file.parent.iterdir()] == ["found.irloom"]


class TestBadFiles:
    def test_another_version_is_named_and_may_be_tried(self, file):
        edited(file, f"irloom {__version__},", "irloom 0.0.1,")
        said = refused(file)
        assert said.startswith(
            f"found.irloom: seen with irloom 0.0.1, torch {torch.__version__}, this is irloom"
        )
        assert said.endswith("hint: --any-version tries all the same\n  --> DIR/found.irloom:9")

    def test_another_version_that_is_asked_for_must_still_be_whole(self, file):
        edited(file, f"irloom {__version__},", "irloom 0.0.1,")
        assert "the text is not the one that was written" in refused(file, any_version=True)
        edited(file, digest(file), "digest: ")
        assert read_reproducer(file, any_version=True).change == "main.y: FuseSiluMul"

    def test_another_format(self, file):
        edited(file, "# reproducer 1", "# reproducer 9")
        assert "'# reproducer 9', but this irloom reads format 1" in refused(file)

    @pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.99])
    def test_a_file_that_was_cut_off(self, file, share):
        text = file.read_text()
        file.write_text(text[: int(len(text) * share)])
        assert re.search(r"cut off or edited.*\n  --> DIR/found.irloom:\d+$", refused(file), re.DOTALL)

    def test_a_session_that_is_none(self, file):
        edited(file, "session: 2 1; 1 0", "session: 2 1; 1")
        edited(file, digest(file), "digest: ")
        assert "session and seed cannot be read" in refused(file)

    @pytest.mark.parametrize("beside", ["", "a/b.safetensors"])
    def test_weights_that_are_nowhere(self, file, beside):
        edited(file, "weights: random", f"weights: {beside}")
        edited(file, digest(file), "digest: ")
        assert refused(file).endswith("--> DIR/found.irloom:8")

    def test_bytes_that_are_no_text(self, file):
        file.write_bytes(file.read_bytes() + b"\xff")
        assert "is not UTF-8" in refused(file)

    def test_a_pass_that_is_not_installed(self, file):
        edited(file, "fuse-mlp(join=false)", "fuse-mpl")
        edited(file, digest(file), "digest: ")
        with pytest.raises(IrloomError, match="fuse-mpl"):
            rerun(file)


class TestWeights:
    """A mistake that random weights do not show, for they are not large enough."""

    @pytest.fixture
    def found(self, tmp_path, monkeypatch):
        def clamped(self, gate, up):
            return minimum(silu_mul(gate, up), 1e3)

        monkeypatch.setattr(FuseSiluMul, "replace", clamped)
        save_file(
            {"up.weight": torch.full((4,), 1e6), "other": torch.ones(9)}, tmp_path / "model.safetensors"
        )
        weights = SafetensorsCheckpoint(tmp_path / "model.safetensors")
        out = tmp_path / "found.irloom"
        assert bisect_module(parse(PROGRAM), parse_pipeline("fuse-mlp"), out=out) is None
        return bisect_module(parse(PROGRAM), parse_pipeline("fuse-mlp"), weights, out=out)

    def test_those_that_it_takes_are_beside_the_file(self, found):
        assert found.culprit.place == "main.y: FuseSiluMul"
        kept = SafetensorsCheckpoint(found.file.with_suffix(".safetensors"))
        assert list(kept.names()) == ["up.weight"]
        assert not rerun(found.file).ok

    def test_the_file_that_is_not_there(self, found):
        found.file.with_suffix(".safetensors").unlink()
        said = refused(found.file)
        assert said.startswith("DIR/found.safetensors: no such file")
        assert said.endswith("--> DIR/found.irloom:8")

    def test_a_tensor_that_is_not_there(self, found):
        save_file({"ups.weight": torch.ones(4)}, found.file.with_suffix(".safetensors"))
        said = refused(found.file)
        assert said.startswith("DIR/found.safetensors: no tensor `up.weight`")
        assert said.endswith("--> DIR/found.irloom:8")

    def test_a_file_that_was_cut_off(self, found):
        beside = found.file.with_suffix(".safetensors")
        beside.write_bytes(beside.read_bytes()[:-8])
        assert refused(found.file).startswith("DIR/found.safetensors")

    def test_too_many_bytes_are_not_written(self, found, monkeypatch):
        monkeypatch.setattr("irloom.passes.reproducer.LARGEST", 8)
        path = found.file.with_name("large.irloom")
        with pytest.raises(IrloomError, match="--random"):
            read_reproducer(found.file).write(path)
        assert not path.exists() and not path.with_suffix(".safetensors").exists()
