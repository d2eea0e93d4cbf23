"""Peers of ``irloom bench``: processes that answer, fail or hang, and the card's meter."""

import subprocess
import sys
import time

import pytest

from irloom.backends.machine import compiler
from irloom.driver.load import Load
from irloom.driver.measure import measure
from irloom.driver.peers import Peer, PeerError, PeerProcess, Setup, core
from irloom.driver.peers.energy import driver, meter

STEADY = """
import time
class Steady:
    about, vocab = "steady 1", 100
    def answer(self, prompts, new, stream):
        start = time.perf_counter()
        assert all(0 <= i < self.vocab for p in prompts for i in p)
        time.sleep(new * 1e-3)
        return [[start + (i + 1) * 1e-3 for i in range(new)] if stream else [] for _ in prompts]
    def close(self):
        pass
def make(**setup):
    print("what a library says")
    return Steady()
"""
HANGS = "import time\ndef make(**setup): time.sleep(60)\n"
DIES = "import os, sys\ndef make(**setup): print('no such card', file=sys.stderr, flush=True); os._exit(3)\n"


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Start a peer of the given source."""

    def start(source, limit=30.0):
        (tmp_path / "made_peer.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setitem(core.PEERS, "made", "made_peer")
        return PeerProcess(Peer("made"), Setup("model", "cpu", "float32", 8, 2), limit=limit)

    return start


def test_a_token_each_millisecond_is_measured_as_that(started):
    load = Load(requests=3, prompt_tokens=2, new_tokens=5, repeats=2)
    with started(STEADY) as peer:
        found = measure(peer, load)
    assert found.about == "steady 1"
    assert found.decode_per_s == pytest.approx(1000, rel=1e-3)
    gaps = found.alone.between_s
    assert (gaps.p50, gaps.p90, gaps.p99) == pytest.approx((1e-3, 1e-3, 1e-3), rel=1e-3)
    assert 1e-3 <= found.together.first_s.p50 < 0.1
    assert 0 < found.output_per_s <= 3 * 1000
    assert found.total_per_s == pytest.approx(found.output_per_s * 7 / 5)
    assert len(found.decode_samples) == len(found.output_samples) == 2


def test_a_peer_that_takes_too_long_is_ended(started):
    start = time.perf_counter()
    with pytest.raises(PeerError, match="to load took more than 1 s"):
        started(HANGS, limit=1.0)
    assert time.perf_counter() - start < 10


def test_a_peer_that_dies_leaves_its_last_words(started):
    with pytest.raises(PeerError, match="ended with status 3: no such card"):
        started(DIES)


def test_an_interpreter_that_is_not_there():
    with pytest.raises(PeerError, match="/no/python cannot be started"):
        PeerProcess(Peer("vllm"), Setup("model", "cpu", "float32", 8, 2), python="/no/python")


def test_whoever_serves_without_a_package_says_which():
    code = "import runpy, sys; sys.path.insert(0, sys.argv[1]); sys.modules['transformers'] = None\n"
    code += "import transformers_peer; transformers_peer.model_of('x', 'cpu', 'float32', {}, None)"
    command = [sys.executable, "-c", code, str(core.HERE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "transformers" in done.stderr.strip().splitlines()[-1]


NVML = """
typedef void* device;
int nvmlInit_v2(void) { return 0; }
int nvmlSystemGetDriverVersion(char* text, unsigned n) { __builtin_strncpy(text, "999.1", n); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, device* out) { *out = (device)(i + 1ul); return 0; }
int nvmlDeviceGetHandleByUUID(const char* id, device* out) { return 6; }
int nvmlDeviceGetTotalEnergyConsumption(device d, unsigned long long* mj) {
    *mj = 5000000000000ull + (unsigned long long)d; return 0; }
"""


def test_the_driver_counts_millijoules_of_the_visible_card(tmp_path):
    cc = compiler()
    if cc is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "nvml.cpp").write_text(f'extern "C" {{{NVML}}}')
    library = tmp_path / "nvml.so"
    subprocess.run(
        [cc.path, "-shared", "-fPIC", "-o", library, tmp_path / "nvml.cpp"], check=True, capture_output=True
    )
    counted = {visible: meter(str(library), visible) for visible in ("", "2,0", "GPU-none")}
    assert [m and m.joules() for m in counted.values()] == [5e9 + 0.001, 5e9 + 0.003, None]
    assert driver(str(library)) == "999.1"


def test_without_a_driver_nobody_counts():
    assert meter("libnone.so.1", "") is None
    assert driver("libnone.so.1") is None
