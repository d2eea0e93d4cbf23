"""Every module says in one sentence what it is for, and docs/structure.md lists them all."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STRUCTURE = runpy.run_path(str(ROOT / "docs" / "structure.py"))
MODULES = STRUCTURE["modules"]()


@pytest.mark.parametrize("module", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_opens_with_one_sentence(module):
    sentence = STRUCTURE["sentence"](module)
    assert sentence.endswith((".", "?", "!")), f"{module}: the first line of its docstring is {sentence!r}"


def test_the_page_lists_every_module_with_its_sentence():
    page = (ROOT / "docs" / "structure.md").read_text()
    assert page == STRUCTURE["rewritten"](page), "docs/structure.md is out of date: run `make docs`"


def test_no_module_outgrows_a_screenful_of_screens():
    long = {str(p.relative_to(ROOT)): n for p in MODULES if (n := len(p.read_text().splitlines())) > 400}
    assert not long, "past 400 lines, look for the noun that wants its own file"


def test_no_module_is_a_drawer_for_odds_and_ends():
    assert not {p.name for p in MODULES} & {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
