"""The command line: ``irloom COMMAND``. Arguments in, text out; the work is done by the rooms below."""

from __future__ import annotations

from .bench import bench
from .bisect import bisect
from .compile import compile_
from .core import irloom, main
from .diff import diff
from .doctor import doctor
from .dump import dump
from .explain import explain
from .op import op
from .passes import pass_, passes
from .run import run
from .verify import verify
from .view import view
from .zoo import zoo

COMMANDS = (run, compile_, dump, diff, view, explain, verify, bisect, passes, pass_, op, bench, zoo, doctor)

for command in COMMANDS:
    irloom.add_command(command)

__all__ = ["main"]
