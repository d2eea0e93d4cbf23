"""Weights are checked on the device that they are for: each byte once, and none is used that was changed."""

from __future__ import annotations

import random
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from irloom.backends import digests
from irloom.backends.artifact import EngineReader, EngineWriter, Manifest
from irloom.backends.core import quiet
from irloom.backends.cuda import checks, extents, weight_store
from irloom.backends.cuda.backend import CudaBackend
from irloom.backends.cuda.transfer import Copy, transfer
from irloom.backends.cuda.weight_store import Wanted
from irloom.backends.digests import Extent
from irloom.ir.checkpoint import RandomCheckpoint, SafetensorsCheckpoint
from irloom.ir.elem import ELEMS
from irloom.ir.errors import CheckpointError, EngineMismatch
from irloom.ir.parse import parse

from .device import DEVICE
from .no_gpu import rehearsal

DIMS = {"embed": (3, 32), "up": (4, 32), "gate": (2, 32), "odd": (3, 7)}
TEXT = """
f8 = quant(f8e4m3, group=0, scale=f32)
f8tensor = quant(f8e4m3, group=0, scale=f32, rows=0)

def main(
    x: f32[T],
    embed: bf16[3, 32] = weight("embed"),
    rows: bf16[2, 32] = slice(weight("embed"), 0, 0, 2),
    both: bf16[6, 32] = concat(weight("up"), weight("gate"), dim=0),
    odd: bf16[3, 7] = weight("odd"),
    turned: bf16[32, 4] = transpose(weight("up")),
    small: f8tensor[4, 32] = quantize(weight("up"), f8tensor),
    fine: f8[4, 32] = quantize(weight("up"), f8),
):
    return x
"""
SHARD = "weights/0000.safetensors"


@pytest.fixture(autouse=True, scope="module")
def small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "PIECE", 64)
        yield


@pytest.fixture
def checkpoint(tmp_path: Path) -> SafetensorsCheckpoint:
    source = RandomCheckpoint(7, DIMS, ELEMS["bf16"])
    save_file({name: source.read(name) for name in DIMS}, tmp_path / "model.safetensors")
    return SafetensorsCheckpoint(tmp_path / "model.safetensors")


@pytest.fixture
def wanted() -> list[Wanted]:
    params = parse(TEXT).funcs["main"].weights
    return [Wanted(p.name, p.weight, None, p.type) for p in params if p.weight is not None]


@pytest.fixture
def engine(tmp_path: Path, checkpoint, wanted) -> Path:
    with EngineWriter(tmp_path / "engine", Manifest("cuda", "tiny", [], {}, {})) as out:
        weight_store.write(out, wanted, checkpoint, quiet, device=DEVICE)
    return tmp_path / "engine"


def opened(engine: Path) -> EngineReader:
    return EngineReader(engine, later=CudaBackend.later)


def weights(engine: Path, wanted: list[Wanted]) -> None:
    """Read them as ``irloom.LLM`` opens an engine."""
    reader = opened(engine)
    try:
        weight_store.read(reader, wanted, DEVICE).wait()
    finally:
        reader.checked()


def test_every_byte_is_checked_once(engine, wanted, monkeypatch) -> None:
    """On the device, but for the header of a file and for what is no whole number of blocks; after that
    nothing is left to check.
    """
    from_files = list[Extent]()
    for room, name in [(checks, "hashed"), (digests, "hashed")]:
        real: Any = getattr(room, name)
        monkeypatch.setattr(room, name, lambda pieces, real=real: from_files.extend(pieces) or real(pieces))
    reader = opened(engine)
    assert not from_files and {name.split()[0] for name in reader.unchecked} == {"weight", SHARD}
    weight_store.read(reader, wanted, DEVICE).wait()
    assert not reader.unchecked
    header = reader.manifest.parts[SHARD].cuts[0]
    odd = reader.manifest.links["weight odd 0"]
    scales = [x for x in from_files if x.path == engine / SHARD and x.start >= header]
    assert [x.stop - x.start for x in scales] == [4, 16]
    assert sum(x.stop - x.start for x in from_files) == header + 4 + 16 + odd.stop - odd.start
    from_files.clear()
    reader.checked()
    weight_store.read(reader, wanted, DEVICE).wait()
    assert not from_files


def test_every_changed_byte_is_refused(engine, checkpoint, wanted, tmp_path) -> None:
    """Of a link, of one of several that a weight is joined of, of what two weights share, of a piece that is
    no whole block, of a shard's header and of what lies in it.
    """
    weights(engine, wanted)
    cuts, links = opened(engine).manifest.parts[SHARD].cuts, opened(engine).manifest.links
    shard, source = engine / SHARD, checkpoint.path
    at = {name.removeprefix("weight "): (link.start, link.stop) for name, link in links.items()}
    shared = "embed|rows"  # whichever is looked at first
    places = [
        (source, at["embed 0"][1] - 1, r"weight embed 0 is a part of .*model.safetensors, which was changed"),
        (source, at["embed 0"][0] + 70, rf"weight ({shared}) 0 is a part"),
        (source, at["both 1"][0] + 3, "weight both 1 is a part"),
        (source, at["odd 0"][1] - 1, "weight odd 0 is a part"),
        (shard, 20, f"part {SHARD} was changed: SHA-256"),
        (shard, cuts[0], f"part {SHARD} was changed: SHA-256"),
        (shard, shard.stat().st_size - 1, f"part {SHARD} was changed: SHA-256"),
    ]
    for file, place, message in places:
        before = file.read_bytes()
        file.write_bytes(before[:place] + bytes([before[place] ^ 4]) + before[place + 1 :])
        with pytest.raises(EngineMismatch, match=message):
            weights(engine, wanted)
        file.write_bytes(before)


def test_what_no_launch_reads_is_checked_too(engine, checkpoint, wanted) -> None:
    reader, (_, *others) = opened(engine), wanted
    weight_store.read(reader, others, DEVICE).wait()
    assert not reader.unchecked
    at = reader.manifest.links["weight embed 0"].stop - 1  # the others share what is in front of it
    data = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(EngineMismatch, match="weight embed 0"):
        weight_store.read(opened(engine), others, DEVICE).wait()


def test_a_file_that_became_shorter_is_an_error_and_nothing_of_it_is_checked(
    engine, checkpoint, wanted
) -> None:
    reader = opened(engine)
    with checkpoint.path.open("r+b") as file:
        file.truncate(checkpoint.path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="but the file ends at"):
        weight_store.read(reader, wanted, DEVICE).wait()
    with pytest.raises(EngineMismatch, match="which was changed"):
        reader.checked()


def test_an_error_of_a_check_is_told_when_nothing_is_read_any_more(engine, wanted, monkeypatch) -> None:
    """Else who opens the engine once more finds the memory of a GPU taken."""
    read, send = list[int](), transfer

    def slow(*given: Any) -> None:
        sleep(0.2)
        send(*given)
        read.append(1)

    def fails(*_: object) -> None:
        raise RuntimeError("nothing compiles")

    monkeypatch.setattr(weight_store, "transfer", slow)
    monkeypatch.setattr(checks, "Sha256", fails)
    with pytest.raises(RuntimeError, match="nothing compiles"):
        weight_store.read(opened(engine), wanted, DEVICE).wait()
    assert read


def test_errors_of_one_weight_leave_no_other_to_be_checked_again(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 9)
    with EngineWriter(tmp_path / "engine", Manifest("cuda", "tiny", [], {}, {})) as out:
        for name in "abc":
            out.link(f"weight {name}", tmp_path / name, 0, 9)
    reader = opened(tmp_path / "engine")
    found = {name: link.sha256 for name, link in reader.manifest.links.items()}
    with pytest.raises(EngineMismatch, match="weight b is a part"):
        reader.compare({**found, "weight b": "0" * 64})
    assert list(reader.unchecked) == ["weight b"]


FILE = 900
RANDOM = random.Random(0).randbytes(FILE)


@st.composite
def runs(draw: st.DrawFn) -> tuple[Extent, list[tuple[int, int, int]]]:
    """Bytes of a file that are hashed as one, and what of them is brought where: (start, stop, offset)."""
    at = sorted(draw(st.lists(st.integers(0, FILE), min_size=2, max_size=5, unique=True)))
    start, *cuts, stop = at
    brought = [
        (a, b, draw(st.sampled_from([0, 0, 0, 4]))) for a, b in pairwise(at) if draw(st.integers(0, 3))
    ]
    return Extent(Path(), start, stop, tuple(cuts)), brought


@settings(max_examples=6, deadline=None)
@given(st.lists(runs(), min_size=1, max_size=12))
def test_the_device_finds_what_the_processor_does(drawn) -> None:
    """Whatever is hashed as one, wherever it is taken to, and if only a part of it is."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        file.write_bytes(RANDOM)
        each = {str(i): x._replace(path=file) for i, (x, _) in enumerate(drawn)}
        copies, to = dict[str, list[Copy]](), 0
        for name, (_, brought) in enumerate(drawn):
            for start, stop, offset in brought:
                source = extents.Extent(file, start, stop - start)
                copies.setdefault(str(name), []).append(Copy(source, to + offset))
                to += -(-(stop - start + offset) // 256) * 256
        memory = torch.zeros(to, dtype=torch.uint8, device=DEVICE)
        filled = Future[None]()
        filled.set_result(transfer([c for of_one in copies.values() for c in of_one], memory))
        found = dict[str, str]()
        engine: Any = SimpleNamespace(unchecked=each, extent=each.__getitem__, compare=found.update)
        checks.check(engine, copies, memory, filled)
        assert found == dict(zip(each, digests.digests([*each.values()]), strict=True))


def test_pieces_that_are_whole_on_the_device_are_hashed_there() -> None:
    file = Path("file")
    copies = [Copy(extents.Extent(file, 100, 300), 512), Copy(extents.Extent(file, 400, 64), 1028)]
    cut = digests.pieces(Extent(file, 36, 500, (100, 400, 464)))
    spans = {(x.start, x.stop): to for x, to in zip(cut, checks.places(cut, copies), strict=True)}
    assert spans == {
        (36, 100): None,  # not there
        (100, 164): 512,
        (164, 228): 576,
        (228, 292): 640,
        (292, 356): 704,
        (356, 400): None,  # no whole block
        (400, 464): None,  # its place is no multiple of 16
        (464, 500): None,
    }


LAUNCHES = """
from types import SimpleNamespace
from irloom.backends.cuda.ahead import rehearsed
from irloom.backends.cuda.kernels.sha256 import Sha256
from irloom.backends.cuda.warm import _queue

def needed(run):
    return {str((job.fn, job.signature, job.constants, job.attrs, job.options)) for job in rehearsed(run)}

work, arrays = SimpleNamespace(reset=lambda: None), SimpleNamespace(settle=lambda: None)
runner = SimpleNamespace(work=work)
engine = SimpleNamespace(graphs=None, runner=runner, arrays=arrays, device=torch.device("cpu"))
built, memory = needed(lambda: _queue(engine, [])), torch.zeros(1 << 16, dtype=torch.uint8)
opened = [needed(lambda: Sha256(memory, [16 * i for i in range(n)], [64] * n)()) for n in (1, 16, 17, 300)]
print(json.dumps({"built": len(built), "missing": [sorted(each - built) for each in opened]}))
"""


def test_a_build_compiles_what_checks_launch(tmp_path: Path) -> None:
    """Once, for any number of pieces."""
    assert rehearsal(LAUNCHES, tmp_path) == {"built": 1, "missing": [[]] * 4}
