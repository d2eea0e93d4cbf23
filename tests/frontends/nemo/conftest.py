"""Checkpoints made by Megatron-core, in a process of its own: it changes torch, and it warns."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
Make = Callable[[list[str]], Path]


@pytest.fixture(scope="session")
def megatron(tmp_path_factory) -> Make:
    """A function that writes checkpoints, asked for as ``family:format``, and gives their directory."""
    if importlib.util.find_spec("megatron") is None:
        pytest.skip("megatron-core is not installed")

    def make(wanted: list[str]) -> Path:
        out = tmp_path_factory.mktemp("megatron")
        command = [sys.executable, "-W", "ignore", "-m", "tests.frontends.nemo.make", str(out), *wanted]
        one = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=one, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return out

    return make


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """An empty cache: traces, tokenizers and unpacked archives of one test are not another's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "irloom"
