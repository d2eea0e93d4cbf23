"""An engine whose program has ops of a plugin says what defines them, and opens only where that is."""

from pathlib import Path

import pytest

from irloom import EngineMismatch
from irloom.backends.artifact import EngineReader, EngineWriter, Manifest
from irloom.backends.needs import needs
from irloom.ir.op import OPS
from irloom.ir.parse import parse
from irloom.ir.show import show
from irloom.passes import load_plugin

OP = '''
from irloom import op

@op("*b n -> *b n")
def {name}(x):
    """``{factor} * x``."""
    return {factor} * x
'''
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"


def engine(folder: Path, op: str) -> Path:
    """An engine of a program with one op, as far as it takes to be opened."""
    m = parse(f"def main(x: f32[T, 8]):\n    a = {op}(x)\n    y = silu(a)\n    return y\n")
    rebuild = ["irloom", "compile", "model", "-o", "out"]
    with EngineWriter(folder, Manifest("cpu", "tiny", [], {}, {}, rebuild, needs=needs(m))) as writer:
        writer.write_text("module.irloom", show(m))
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(EngineMismatch) as caught:
        EngineReader(folder).module()
    return str(caught.value).replace(str(folder), "DIR")


def test_ops_of_irloom_are_no_need(tmp_path: Path):
    folder = engine(tmp_path / "e", "exp")
    assert EngineReader(folder).manifest.needs == []
    assert EngineReader(folder).module().main.nodes[0].op.name == "exp"


def test_a_file_is_given_again_and_is_the_same(tmp_path: Path):
    file = tmp_path / "needed.py"
    file.write_text(OP.format(name="needed_file", factor=2))
    load_plugin(file)
    folder = engine(tmp_path / "e", "needed_file")
    (need,) = EngineReader(folder).manifest.needs
    assert (need.ops, need.package, need.file) == (("needed_file",), None, str(file))
    assert EngineReader(folder).module().main.nodes[0].op is OPS["needed_file"]

    file.write_text(OP.format(name="needed_file", factor=3))
    said = f"DIR: the engine needs {file} as it was when it was built, for op needed_file\nhint: build it "
    assert refused(folder).startswith(said)
    del OPS._ops["needed_file"]  # as in a process that was started without it
    assert refused(folder) == (
        f"DIR: the engine needs {file}, which was not given, for op needed_file\n"
        f"hint: --plugin {file}; or build it again: irloom compile model -o out"
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package of ops, with its metadata."""
    site = tmp_path / "site"
    (site / "needed_ops").mkdir(parents=True)
    (site / "needed_ops" / "__init__.py").write_text(OP.format(name="needed_op", factor=2))
    install(site, "1.0")
    monkeypatch.syspath_prepend(site)
    return site


def install(site: Path, version: str) -> None:
    facts = site / "needed.dist-info"
    facts.mkdir(exist_ok=True)
    (facts / "METADATA").write_text(METADATA.format(name="needed", version=version))
    (facts / "entry_points.txt").write_text("[irloom.ops]\nneeded_op = needed_ops:needed_op\n")


def test_a_package_is_installed_in_the_same_version(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is loaded by itself; which version it has is what its metadata say."""
    folder = engine(tmp_path / "e", "needed_op")
    (need,) = EngineReader(folder).manifest.needs
    assert (need.ops, need.package, need.version) == (("needed_op",), "needed", "1.0")
    assert EngineReader(folder).module().main.nodes[0].op is OPS["needed_op"]

    install(package, "1.1")
    assert refused(folder) == (
        "DIR: the engine needs needed 1.0, and 1.1 is installed, for op needed_op\n"
        "hint: pip install needed==1.0; or build it again: irloom compile model -o out"
    )
    monkeypatch.undo()
    assert refused(folder).startswith("DIR: the engine needs needed 1.0, which is not installed, for op")
