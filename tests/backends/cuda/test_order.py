"""What every kernel owes those behind it, which are launched before it has ended.

A kernel that has ended without waiting lets the one behind it go on while the one in front still writes. So
every kernel waits, whatever there is for a program to do, and before it writes.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from irloom.backends.cuda import kernels

WRITES = "store", "atomic"
"""In the names of what writes: of Triton, of its descriptors and of what copies boxes."""
INSIDE = {"few": "a program that has keys waits while its first ones are on their way, then writes"}


@cache
def launched() -> dict[str, ast.FunctionDef]:
    """Functions that are kernels of their own: they may be chained, and have programs."""
    found: dict[str, ast.FunctionDef] = {}
    for file in sorted(Path(kernels.__path__[0]).glob("*.py")):
        for f in ast.parse(file.read_text()).body:
            if isinstance(f, ast.FunctionDef) and "CHAIN" in [a.arg for a in f.args.args]:
                body = ast.unparse(f)
                if "program_id" in body and "gl.warp_specialize" not in body:
                    found[f.name] = f
    return found


@pytest.mark.parametrize("name", launched())
def test_it_waits_before_it_writes_or_ends(name: str) -> None:
    f = launched()[name]
    waits = [i for i, line in enumerate(f.body) if ast.unparse(line) == "wait(CHAIN)"]
    assert waits, "not where every program comes by"
    before = [node for line in f.body[: waits[0]] for node in ast.walk(line)]
    assert not any(isinstance(node, ast.Return) for node in before)
    calls = [ast.unparse(node.func) for node in before if isinstance(node, ast.Call)]
    assert name in INSIDE or not [call for call in calls if any(word in call for word in WRITES)]


def test_nothing_starts_before_a_step_has_arrived() -> None:
    """Kernels for few sequences read page tables and keys before they wait: behind this one they may."""
    assert "go_on" not in ast.unparse(launched()["_arrive"])
    assert any("go_on" in ast.unparse(f) for f in launched().values())
