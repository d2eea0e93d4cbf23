"""Engine directories: whole or absent; one changed byte anywhere and they do not open."""

import hashlib
import json
import random
import resource
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irloom.backends import digests
from irloom.backends.artifact import MANIFEST, EngineReader, EngineWriter, Manifest
from irloom.ir.errors import BuildError, EngineMismatch


def manifest() -> Manifest:
    return Manifest(
        "cpu",
        "m",
        ["canonicalize"],
        {"irloom": "1"},
        {"features": []},
        rebuild=["irloom", "compile", "a model", "-o", "e"],
    )


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(200)))
    with EngineWriter(tmp_path / "engine", manifest()) as out:
        out.write_text("module.irloom", "# irloom 1\n")
        out.write_json("plan.json", {"pools": []})
        out.file("tokenizer/tokenizer.json").write_bytes(random.Random(0).randbytes(500))
        out.link("embed", source, 10, 20)
    return tmp_path / "engine"


def test_what_is_written_is_read(engine):
    reader = EngineReader(engine)
    assert reader.read_text("module.irloom") == "# irloom 1\n"
    assert reader.read_json("plan.json") == {"pools": []}
    assert reader.manifest.links["embed"].stop == 20


def test_every_changed_byte_is_refused(engine):
    files = sorted(p for p in engine.rglob("*") if p.is_file())
    draw, refused = random.Random(1), 0
    for _ in range(300):
        file = draw.choice(files)
        before = file.read_bytes()
        at, bit = draw.randrange(len(before)), 1 << draw.randrange(8)
        file.write_bytes(before[:at] + bytes([before[at] ^ bit]) + before[at + 1 :])
        with pytest.raises(EngineMismatch):
            EngineReader(engine)
        file.write_bytes(before)
        refused += 1
    assert refused == 300
    EngineReader(engine)


@pytest.mark.parametrize("cuts", [[], [16], [7, 8, 40]])
def test_every_byte_of_every_piece_is_checked(tmp_path, monkeypatch, cuts):
    """And which piece stands where."""
    monkeypatch.setattr(digests, "PIECE", 16)
    pieces = [bytes([i]) * 16 for i in range(5)]
    with EngineWriter(tmp_path / "engine", manifest()) as out:
        part = out.file("weights/0")
        part.write_bytes(b"".join(pieces) + b"end")
        out.cut("weights/0", cuts)
    part = tmp_path / "engine/weights/0"
    whole = part.read_bytes()
    EngineReader(tmp_path / "engine")
    changed = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    for other in [*changed, b"".join(pieces[::-1]) + b"end"]:
        part.write_bytes(other)
        with pytest.raises(EngineMismatch, match="weights/0 was changed"):
            EngineReader(tmp_path / "engine")


@given(st.data())
def test_a_digest_is_of_pieces_however_they_are_read(data):
    """Pieces begin anew at cuts; extents lie behind each other, share bytes, or are beyond the end."""
    whole, places = random.Random(0).randbytes(70), st.integers(0, 80)
    cuts = data.draw(st.lists(st.lists(places, min_size=2, max_size=5).map(sorted), max_size=6))
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "PIECE", 8)
        patch.setattr(digests, "READ", data.draw(st.integers(1, 40)))
        file = Path(folder) / "file"
        file.write_bytes(whole)
        extents = [digests.Extent(file, start, stop, tuple(inner)) for start, *inner, stop in cuts]
        assert digests.digests(extents) == [slowly(whole, at) for at in cuts]


def slowly(whole: bytes, at: list[int]) -> str:
    runs = [(a, b) for a, b in pairwise(at) if a < b] or [(0, 0)]
    each = [whole[i : min(i + 8, b)] for a, b in runs for i in range(a, b, 8)] or [b""]
    found = [hashlib.sha256(piece).digest() for piece in each]
    return (found[0] if len(found) == 1 else hashlib.sha256(b"".join(found)).digest()).hex()


def test_what_is_checked_later_is_checked(engine):
    """Bytes of parts and links; that they are there, at once."""
    source = engine.parent / "source.bin"
    for file, named in [(engine / "tokenizer/tokenizer.json", "tokenizer"), (source, "embed")]:
        before = file.read_bytes()
        file.write_bytes(before[:15] + bytes([before[15] ^ 1]) + before[16:])
        with pytest.raises(EngineMismatch):
            EngineReader(engine)
        reader = EngineReader(engine, later=("tokenizer/", "embed"))
        assert [name for name in reader.unchecked if name.startswith(named)]
        for _ in range(2):
            with pytest.raises(EngineMismatch, match=f"{named}.* was changed"):
                reader.checked()
        file.write_bytes(before)
    reader = EngineReader(engine, later=("tokenizer/", "embed"))
    reader.checked()
    assert not reader.unchecked
    source.unlink()
    with pytest.raises(EngineMismatch, match="which is gone"):
        EngineReader(engine, later=("embed",))


def test_a_build_remembers_what_it_has_hashed(tmp_path, monkeypatch):
    """Of a file that is as it was; a file that is not is hashed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hashed = list[digests.Extent]()
    real = digests.digests

    def counting(extents):
        hashed.extend(extents)
        return real(extents)

    monkeypatch.setattr(digests, "digests", counting)
    file = tmp_path / "weights"
    file.write_bytes(b"abcdef")
    asked = [digests.Extent(file, 0, 3), digests.Extent(file, 3, 6)]
    first = digests.remembered_digests(asked)
    assert digests.remembered_digests([*asked[::-1]]) == first[::-1]
    assert hashed == asked
    file.write_bytes(b"abcdeg")
    again = digests.remembered_digests(asked)
    assert again[0] == first[0] and again[1] != first[1]
    assert len(hashed) == 4


def test_a_changed_part_is_named_and_so_is_the_way_back(engine):
    (engine / "plan.json").write_text('{"pools": [1]}')
    with pytest.raises(EngineMismatch) as caught:
        EngineReader(engine)
    assert str(caught.value) == (
        f"{engine}: part plan.json has 14 bytes, the manifest says 16\n"
        "hint: build it again: irloom compile 'a model' -o e"
    )


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda e: (e / "plan.json").unlink(), "part plan.json is missing"),
        (lambda e: (e / "extra.so").write_bytes(b"x"), "extra.so is not a part of the engine"),
        (lambda e: (e.parent / "source.bin").write_bytes(bytes(200)), "source.bin, which was changed"),
        (lambda e: (e.parent / "source.bin").unlink(), "source.bin, which is gone"),
        (lambda e: (e / MANIFEST).unlink(), "is not an engine"),
        (lambda e: (e / "manifest.sha256").unlink(), "not as it was written"),
    ],
)
def test_an_engine_that_is_not_whole_is_refused(engine, harm, message):
    harm(engine)
    with pytest.raises(EngineMismatch, match=message):
        EngineReader(engine)


def test_the_exact_difference_is_told(engine):
    with pytest.raises(EngineMismatch, match="irloom 1 when built, 2 here"):
        EngineReader(engine).require({"irloom": "1"}, {"irloom": "2"})


def stopped_build(place):
    with EngineWriter(place, manifest()) as out:
        out.write_text("module.irloom", "")
        raise RuntimeError


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        stopped_build(tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []


def test_an_older_format_is_refused(engine):
    facts = json.loads((engine / MANIFEST).read_text())
    text = json.dumps({**facts, "format": 0}).encode()
    (engine / MANIFEST).write_bytes(text)
    (engine / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest() + "\n")
    with pytest.raises(EngineMismatch, match="of format 0, this irloom reads format 3"):
        EngineReader(engine)


def write_past(most: int, engine: Path) -> None:
    """Write an engine where no file may grow past ``most`` bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, old[1]))
    try:
        with EngineWriter(engine, manifest()) as out:
            out.file("plans/a.plan").write_bytes(bytes(most + 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_disk_that_is_full_is_told_and_leaves_the_engine_that_was_there(engine):
    before = EngineReader(engine).manifest.parts
    with pytest.raises(BuildError) as caught:
        write_past(64, engine)
    assert caught.value.message == (
        f"{engine}: File too large while the engine was written; nothing of it is left"
    )
    assert EngineReader(engine).manifest.parts == before
    assert not list(engine.parent.glob(".engine*"))
