"""Plans: each structure built once, kept by what decides its bytes, and nothing kept of one that failed."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from irloom.backends.locks import locked
from irloom.backends.tensorrt import plan_cache
from irloom.backends.tensorrt.layers.matmul import MatrixMultiply
from irloom.backends.tensorrt.library import LibraryMissing, load
from irloom.backends.tensorrt.network import Network
from irloom.backends.tensorrt.plan import Builder, Recipe
from irloom.backends.tensorrt.plan_cache import plans
from irloom.backends.tensorrt.profiles import Ranges, profiles
from irloom.ir.dims import sym
from irloom.ir.elem import ELEMS
from irloom.ir.errors import BuildError

BF16 = ELEMS["bf16"]
RANGES = Ranges(max_tokens=64, max_seqs=8, max_context=128)
FAKE = Builder("tensorrt_rtx", "1.7", None, ("8.0",), "inputs")


def products(name: str, width: int = 32, count: int = 1) -> Network:
    """Products one after another, each with a weight of its own."""
    net = Network()
    x = net.input(f"{name}_x", BF16, (sym("T"), width))
    for i in range(count):
        w = net.weight(f"{name}_w{i}", BF16, (width, width))
        (x,) = net.add(MatrixMultiply(x, w, transpose_b=True), f"{name}_y{i}")
    net.output(f"{name}_out", x)
    return net


def recipe(net: Network, builder: Builder = FAKE, ranges: Ranges = RANGES) -> Recipe:
    return Recipe.of(net, profiles(net, ranges), builder)[0]


@pytest.fixture
def here() -> Builder:
    """What builds on this machine, with weights as inputs: that needs no GPU."""
    try:
        library = load()
    except LibraryMissing as missing:
        pytest.skip(str(missing))
    return Builder(library.name, library.version, None, ("8.0", "8.6", "8.9", "12.0"), "inputs")


def quiet(stage: str, done: int, total: int) -> None:
    pass


class TestWhatDecidesAPlan:
    def test_layers_that_differ_in_their_weights_alone_share_it(self):
        assert recipe(products("a")).key == recipe(products("b")).key

    def test_a_network_profiles_a_version_and_a_gpu_each_make_another(self):
        keys = {
            recipe(products("a")).key,
            recipe(products("a", width=48)).key,
            recipe(products("a"), ranges=Ranges(128, 8, 128)).key,
            recipe(products("a"), Builder("tensorrt_rtx", "1.8", None, ("8.0",), "inputs")).key,
            recipe(products("a"), Builder("tensorrt_rtx", "1.7", None, ("12.0",), "inputs")).key,
            recipe(products("a"), Builder("tensorrt_rtx", "1.7", "an RTX 5090", ("8.0",), "inputs")).key,
            recipe(products("a"), Builder("tensorrt_rtx", "1.7", None, ("8.0",), "refit")).key,
        }
        assert len(keys) == 7

    def test_names_lead_back_from_the_plan_to_the_network(self):
        net = products("a", count=2)
        made, names = Recipe.of(net, profiles(net, RANGES), FAKE)
        assert names == {"in0": "a_x", "w0": "a_w0", "w1": "a_w1", "out0": "a_out"}
        assert [t.name for t in made.network.inputs] == ["in0", "w0", "w1"]
        assert not made.network.weights


@pytest.mark.tensorrt
class TestBuilding:
    def test_equal_structures_are_built_once_and_never_again(self, here, tmp_path):
        told: list[tuple[str, int, int]] = []
        wanted = [recipe(products(name), here) for name in "abc"] + [recipe(products("d", count=3), here)]
        built = plans(wanted, lambda *said: told.append(said), 2, tmp_path)
        assert len(built) == 2
        for one in built.values():
            assert one.seconds > 0 and len(one.read()) == one.bytes > 1000
            assert "plan: " in one.log.read_text()
        stages = {stage.partition(": ")[0] for stage, _, _ in told}
        assert stages == {"plan 1 of 2", "plan 2 of 2"}
        for stage in stages:
            shares = [done for said, done, _ in told if said.startswith(stage)]
            assert shares == sorted(shares) and shares[-1] == 1000 and len(shares) > 10
        again = plans(wanted, quiet, 2, tmp_path)
        assert {k: b.sha256 for k, b in again.items()} == {k: b.sha256 for k, b in built.items()}
        assert all(b.seconds == 0 for b in again.values())

    def test_a_plan_that_was_edited_is_built_again(self, here, tmp_path):
        wanted = recipe(products("a"), here)
        (built,) = plans([wanted], quiet, 1, tmp_path).values()
        data = bytearray(built.plan.read_bytes())
        data[len(data) // 2] ^= 1
        built.plan.write_bytes(bytes(data))
        with pytest.raises(BuildError, match="was changed since it was built"):
            built.read()
        (again,) = plans([wanted], quiet, 1, tmp_path).values()
        assert again.seconds > 0 and again.read() != bytes(data)

    def test_a_builder_that_is_killed_leaves_its_log_and_nothing_else(self, here, tmp_path):
        killed = threading.Event()

        def kill(stage: str, done: int, total: int) -> None:
            for child in multiprocessing.active_children() if not killed.is_set() else ():
                os.kill(child.pid or 0, signal.SIGKILL)
                killed.set()

        with pytest.raises(BuildError) as caught:
            plans([recipe(products("a", count=60), here)], kill, 1, tmp_path)
        assert "the builder was ended by SIGKILL, as happens when memory runs out" in caught.value.message
        assert {p.suffix for p in tmp_path.iterdir() if p.is_file()} <= {".log"}

    def test_a_weight_that_no_memory_holds_is_told_as_such(self, here, tmp_path):
        vast = Network()
        x = vast.input("x", BF16, (sym("T"), 1 << 22))
        w = vast.weight("w", BF16, (1 << 22, 1 << 22))
        vast.output("y", vast.add(MatrixMultiply(x, w), "y")[0])
        refit = Builder(here.library, here.version, None, here.targets, "refit")
        with pytest.raises(BuildError) as caught:
            plans([recipe(vast, refit)], quiet, 1, tmp_path)
        assert caught.value.hint.startswith("close what else uses memory")

    def test_a_disk_that_is_full_is_told_and_nothing_is_kept(self, here, tmp_path):
        wanted = recipe(products("a"), here)
        (tmp_path / f".{wanted.key}.partial").symlink_to("/dev/full")  # where nothing more fits
        with pytest.raises(BuildError) as caught:
            plans([wanted], quiet, 1, tmp_path)
        assert f"{tmp_path}: No space left on device" in caught.value.message
        assert "XDG_CACHE_HOME" in caught.value.hint
        assert {p.suffix for p in tmp_path.iterdir() if p.is_file()} <= {".log"}
        (built,) = plans([wanted], quiet, 1, tmp_path).values()
        assert built.seconds > 0

    def test_a_build_that_is_killed_leaves_nothing_that_counts(self, here, tmp_path):
        build = _started(tmp_path, 100)
        while not list(tmp_path.glob("*.log")):  # the builder is at work
            assert build.poll() is None
            time.sleep(0.01)
        build.kill()
        build.communicate()
        assert not list(tmp_path.glob("*.json")) and not list(tmp_path.glob("*.plan"))
        (built,) = plans([recipe(products("a", count=100), here)], quiet, 1, tmp_path).values()
        assert built.seconds > 0 and len(built.read()) == built.bytes

    def test_of_two_processes_one_builds_and_the_other_waits(self, here, tmp_path):
        said = [json.loads(p.communicate()[0]) for p in [_started(tmp_path, 8) for _ in range(2)]]
        assert {s["key"] for s in said} == {recipe(products("a", count=8), here).key}
        assert sorted(s["seconds"] > 0 for s in said) == [False, True]
        assert len({s["sha256"] for s in said}) == 1


def _started(folder: Path, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _BUILD, str(folder), str(count)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


_BUILD = """
import json, sys
from pathlib import Path
from irloom.backends.tensorrt.library import load
from irloom.backends.tensorrt.plan import Builder
from irloom.backends.tensorrt.plan_cache import plans
from tests.backends.tensorrt.test_plans import products, quiet, recipe

if __name__ == "__main__":
    here = Builder(load().name, load().version, None, ("8.0", "8.6", "8.9", "12.0"), "inputs")
    wanted = recipe(products("a", count=int(sys.argv[2])), here)
    ((key, built),) = plans([wanted], quiet, 1, Path(sys.argv[1])).items()
    print(json.dumps({"key": key, "seconds": built.seconds, "sha256": built.sha256}))
"""


class TestTheCache:
    def test_a_lock_is_free_again_once_its_holder_is_gone(self, tmp_path):
        held = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
        )
        assert held.stdout is not None and held.stdout.readline() == "held\n"
        with locked(tmp_path / "lock", wait=False) as mine:
            assert not mine
        held.kill()
        held.wait()
        held.stdout.close()
        with locked(tmp_path / "lock") as mine:
            assert mine

    def test_a_folder_that_cannot_be_made_is_told(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(BuildError, match="Not a directory"):
            plans([recipe(products("a"))], quiet, 1, tmp_path / "file" / "plans")

    def test_it_lies_where_all_caches_do(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert plan_cache.default_folder() == tmp_path / "irloom" / "tensorrt"


_HOLD = """
import sys, time
from pathlib import Path
from irloom.backends.locks import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
