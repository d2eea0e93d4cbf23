"""Archives that lead out of themselves, link, repeat, lie or never end: refused before anything is read."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

import irloom
from irloom.frontends.nemo import open_path
from irloom.frontends.nemo.frontend import Nemo
from irloom.ir.errors import CheckpointError
from tests.frontends.nemo.plain import pack, write_nemo1


@pytest.fixture
def model(tmp_path) -> Path:
    return write_nemo1(tmp_path / "model")


def refusal(path: Path) -> str:
    """The error of opening ``path``, which must have a hint."""
    with pytest.raises(CheckpointError) as caught:
        open_path(path)
    assert caught.value.hint
    return str(caught.value)


def add(archive: Path, member: tarfile.TarInfo, data: bytes = b"") -> Path:
    with tarfile.open(archive, "a:") as tar:
        tar.addfile(member, io.BytesIO(data))
    return archive


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, kind, link
    return made


def test_a_good_archive_opens(model, tmp_path):
    assert open_path(pack(model, tmp_path / "m.nemo")).family.model_type == "llama"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "a\\..\\evil"])
def test_a_name_that_leads_out_is_refused(model, tmp_path, name):
    archive = add(pack(model, tmp_path / "m.nemo"), member(name, 1), b"x")
    assert "leads out of the archive" in refusal(archive)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.FIFOTYPE, "a device"),
    ],
)
def test_what_is_no_plain_file_is_refused(model, tmp_path, kind, word):
    archive = pack(model, tmp_path / "m.nemo")
    assert word in refusal(add(archive, member("weights", kind=kind, link="model_config.yaml")))


@pytest.mark.parametrize("name", ["model_config.yaml", "./model_config.yaml", "././model_config.yaml"])
def test_a_name_that_is_there_twice_is_refused(model, tmp_path, name):
    archive = add(pack(model, tmp_path / "m.nemo"), member(name, 3), b"{}\n")
    assert "`model_config.yaml` is there twice" in refusal(archive)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_an_archive_that_ends_early_is_refused(model, tmp_path, share):
    archive = pack(model, tmp_path / "m.nemo")
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * share)])
    assert "hint: the download may be incomplete" in refusal(archive)


def test_a_damaged_header_is_not_taken_for_the_end(model, tmp_path):
    archive = pack(model, tmp_path / "m.nemo")
    with tarfile.open(archive) as tar:
        last = tar.getmembers()[-1]
    data = bytearray(archive.read_bytes())
    data[last.offset + 150] ^= 0xFF
    archive.write_bytes(data)
    assert "damaged header" in refusal(archive)


def test_a_bomb_stops_at_its_bound_and_leaves_nothing(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("irloom.frontends.nemo.gzipped._FREE", 1 << 20)
    bomb = tmp_path / "m.nemo"
    with gzip.GzipFile(bomb, "wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    assert "unpacks to more than" in refusal(bomb)
    assert not list((cache / "archives").iterdir())


def test_a_gzipped_archive_that_ends_early_leaves_nothing(model, tmp_path, cache):
    archive = pack(model, tmp_path / "m.nemo", mode="w:gz")
    archive.write_bytes(archive.read_bytes()[:-40])
    assert "does not unpack" in refusal(archive)
    assert not list((cache / "archives").iterdir())


def test_a_gzipped_archive_is_unpacked_once(model, tmp_path, cache):
    archive = pack(model, tmp_path / "m.nemo", mode="w:gz")
    open_path(archive)
    (kept,) = (cache / "archives").iterdir()
    written = kept.stat().st_mtime_ns
    open_path(archive)
    assert [kept] == list((cache / "archives").iterdir())
    assert kept.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"BZh9junk", "bzip2"),
        (b"\xfd7zXZ\x00junk", "xz"),
        (b"PK\x03\x04junk", "zip"),
        (b"", "tar"),
        (b"x", "tar"),
    ],
)
def test_what_is_no_tar_is_refused(tmp_path, data, word):
    (tmp_path / "m.nemo").write_bytes(data)
    assert word in refusal(tmp_path / "m.nemo")


def test_a_speech_model_is_refused_by_its_name(model, tmp_path):
    config = "target: nemo.collections.asr.models.EncDecCTCModelBPE\nsample_rate: 16000\n"
    (model / "model_config.yaml").write_text(config)
    assert "it is a EncDecCTCModelBPE" in refusal(pack(model, tmp_path / "m.nemo"))


def test_other_directories_are_not_claimed(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert not Nemo().claims(tmp_path)
    (tmp_path / "weights").mkdir()
    assert not Nemo().claims(tmp_path)


def test_the_public_door_refuses_too(model, tmp_path):
    archive = add(pack(model, tmp_path / "m.nemo"), member("../evil", 1), b"x")
    with pytest.raises(CheckpointError, match="leads out of the archive"):
        irloom.trace(archive)
    with pytest.raises(CheckpointError, match="leads out of the archive"):
        irloom.compile(archive, "reference", out=tmp_path / "engine")
    assert not (tmp_path / "engine").exists()
