"""Run `irloom` in this process, as a shell would see it; a tiny model to run it on."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from irloom.cli import main

from .tiny import save_tiny


@dataclass
class Result:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def irloom(capsys):
    def run(*args):
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in args])
        return Result(int(stopped.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory):
    """A cache of its own for engines and traces; compiled kernels are those of the user's cache."""
    kernels = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "irloom" / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    home = tmp_path_factory.mktemp("cache")
    (home / "irloom").mkdir()
    (home / "irloom" / "kernels").symlink_to(kernels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def model(tmp_path_factory, cache_home):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def engine(model, tmp_path_factory):
    """The tiny model's engine for the CPU."""
    import irloom

    return irloom.compile(model, out=tmp_path_factory.mktemp("engines") / "tiny")
