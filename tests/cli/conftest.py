"""Run `irloom` in this process, as a shell would see it."""

import json
from dataclasses import dataclass

import pytest

from irloom.cli import main


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
