"""Pages that show code are run: what a block prints is what stands below it.

    ```python            a part of the page's one session
    ```python tide.py    a file, which is there before anything runs
    ```sh                commands of irloom and pytest, one a line; lines that start with # are for readers
    ```text              what the block above prints, stdout and stderr; shown without the folder it ran in

``pytest --update`` writes what was printed into the page.
"""

import difflib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from irloom.testing.markdown import Block, headings
from tests.conftest import ROOT

COMMANDS = {
    "irloom": ("-m", "irloom"),
    "pytest": ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "irloom.testing.plugin"),
}
SMALL = re.compile(r"\d\.\d+e[+-]\d+")
"""Errors of rounding, which another processor makes differently."""
SIZE = re.compile(r"\d[\d.]* [kMG]B\b")
"""Sizes of engines, which follow versions of libraries."""

NEEDS = {"onnx.md": ("onnxruntime", "onnx_graphsurgeon")}
"""Packages that a page shows, which not every machine has."""
PAGES = [
    ROOT / "docs" / name
    for name in ("bring_up.md", "cookbook.md", "cuda.md", "from_scratch.md", "onnx.md", "tensorrt.md")
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_does_what_it_says(page, tmp_path, monkeypatch, request, gemma_gguf):
    for package in NEEDS.get(page.name, ()):
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "library"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    here = tmp_path / "page"
    here.mkdir()
    (here / "gemma.gguf").symlink_to(gemma_gguf)
    blocks = [block for _, _, found in headings(page) for block in found]
    said = printed(blocks, here)
    wanted = {i: block for i, block in enumerate(blocks) if block.words == "text"}
    assert wanted.keys() == said.keys(), "blocks that print have a text block below them, others have none"
    if request.config.getoption("--update"):
        update(page, [(wanted[i], said[i]) for i in reversed(wanted)])
    for i, block in wanted.items():
        same = steady(block.text) == steady(said[i])
        rows = difflib.unified_diff(block.text.splitlines(), said[i].splitlines(), "page", "printed", n=9)
        assert same or request.config.getoption("--update"), "\n".join([f"{page}:{block.start}", *rows])


def steady(text: str) -> str:
    """What every machine prints alike."""
    return SIZE.sub("#", SMALL.sub("#", text))


def printed(blocks: list[Block], here: Path) -> dict[int, str]:
    """What is printed below each block that prints, by the number of the block that comes next."""
    for block in blocks:
        _, _, name = block.words.partition(" ")
        if name:
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_text(block.text + "\n")
    session = [(i, block.text) for i, block in enumerate(blocks) if block.words == "python"]
    texts = dict(zip((i for i, _ in session), python([code for _, code in session], here), strict=True))
    texts |= {i: shell(block.text, here) for i, block in enumerate(blocks) if block.words == "sh"}
    shown = {i + 1: text.replace(f"{here.resolve()}/", "").strip("\n") for i, text in texts.items()}
    return {i: text for i, text in shown.items() if text}


def python(session: list[str], here: Path) -> list[str]:
    """The session's blocks in a process of their own: they register ops and blocks."""
    command = [sys.executable, str(ROOT / "tests" / "docs" / "session.py")]
    given = json.dumps([(f"block {i}", code) for i, code in enumerate(session)])
    ran = subprocess.run(command, input=given, cwd=here, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def shell(lines: str, here: Path) -> str:
    """Commands, one after the other."""
    out = []
    for line in lines.splitlines():
        name, *words = shlex.split(line, comments=True) or [""]
        if name:
            command = [sys.executable, *COMMANDS[name], *words]
            env = os.environ | {"COLUMNS": "100"}
            ran = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, check=False)
            assert ran.returncode in (0, 1), (
                ran.stderr
            )  # 1 is a mistake of the reader's, which a page may show
            out.append(re.sub(r" in [\d.]+s$", "", ran.stdout + ran.stderr, flags=re.MULTILINE))
    return "".join(out)


def update(page: Path, blocks: list[tuple[Block, str]]) -> None:
    """Write what was printed into the page, from its end on, so that lines above stay where they are."""
    lines = page.read_text().splitlines()
    for block, text in blocks:
        lines[block.start : block.stop] = text.splitlines()
    page.write_text("\n".join(lines) + "\n")
