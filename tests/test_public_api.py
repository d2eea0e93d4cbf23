"""`import irloom` is quick and offers exactly what its `__all__` says."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import irloom

HEAVY = {"torch", "transformers", "numpy", "networkx", "gguf", "rich", "click"}


def loaded_by(code):
    """Top-level packages in `sys.modules` after `code` ran in a fresh interpreter."""
    probe = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_importing_irloom_loads_nothing_heavy():
    assert not loaded_by("import irloom") & HEAVY


def test_the_command_line_loads_nothing_but_click():
    assert loaded_by("import irloom.cli") & HEAVY == {"click"}


@pytest.mark.parametrize("does", ["enable", "disable"])
def test_a_name_leaves_the_garbage_collector_as_it_is(does):
    """It is off while modules are imported."""
    said = f"import gc, irloom\ngc.{does}()\nirloom.IRError\ntry: irloom.nothing\nexcept AttributeError: pass"
    code = f"{said}\nassert gc.isenabled() == {does == 'enable'}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_names_for_type_checkers_are_the_names_at_run_time():
    (block,) = (
        node
        for node in ast.parse(Path(irloom.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    typed = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed | {"__version__"} == set(irloom.__all__)


@pytest.mark.parametrize("name", irloom.__all__)
def test_a_public_name_resolves(name):
    assert getattr(irloom, name) is not None


def test_a_misspelt_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'tracee'"):
        _ = irloom.tracee
