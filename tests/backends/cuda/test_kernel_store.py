"""Kernels that were compiled for an engine are found by Triton where the engine is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from irloom.backends.artifact import EngineReader, EngineWriter, Manifest
from irloom.backends.cuda.kernel_store import choices_of, keep_list, list_of, listed, seed, store
from tests.backends.cuda.cross import compiled

CHOICES = {"product (1, 2)": "Tile(4)"}


def compile_one() -> None:
    """Compile one kernel, in a process of its own."""
    signature = {"told": "*i32", "turns": "*i32", "chosen": "*i32", "stride": "i32", "count": "i32"}
    constants = {"STEPS": 3, "WORDS": 256, "CHAIN": True}
    compiled("irloom.backends.cuda.kernels.exchange", "_leave", signature, constants, num_warps=8)


def files(folder: Path) -> dict[str, int]:
    """Every file of a cache, and when it was written."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in found}


def test_an_engine_brings_its_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(there))
    compile_one()
    with EngineWriter(tmp_path / "engine", Manifest("cuda", "m", [], {}, {})) as out:
        store(out, there, [folder.name for folder in there.iterdir()], CHOICES)
    reader = EngineReader(tmp_path / "engine")
    assert choices_of(reader) == CHOICES
    runs = (".cubin", ".json", ".so")
    assert seed(reader, here) == len([name for name in files(there) if name.endswith(runs)])
    assert seed(reader, here) == 0
    before = files(here)
    assert any(name.endswith(".cubin") for name in before)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(here))
    compile_one()
    assert files(here) == before, "the kernel was compiled again"


def test_a_list_of_kernels_holds_while_all_are_there(tmp_path: Path) -> None:
    compiled_here = tmp_path / "triton"
    file = list_of(tmp_path / "gpu.json", "a program")
    assert listed(file, compiled_here) is None
    for name in ("A", "B"):
        (compiled_here / name).mkdir(parents=True)
    keep_list(file, {"A", "B"})
    assert listed(file, compiled_here) == {"A", "B"}
    assert listed(list_of(tmp_path / "gpu.json", "another"), compiled_here) is None
    (compiled_here / "B").rmdir()
    assert listed(file, compiled_here) is None
