"""docs/ops.md and docs/passes.md are what docstrings say, and whoever reads them can follow every link."""

import re
import runpy

import pytest

from irloom.passes import PASSES, page
from tests.conftest import ROOT

REFERENCE = runpy.run_path(str(ROOT / "docs" / "reference.py"))
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(#[^)\s]*)?\)")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("name", ["ops", "passes"])
def test_a_page_is_what_docstrings_say(name):
    written = (ROOT / "docs" / f"{name}.md").read_text()
    assert written == REFERENCE[name](), f"docs/{name}.md is out of date: run `make docs`"


@pytest.mark.parametrize("name", [n for n in PASSES if PASSES[n].__module__.startswith("irloom.passes")])
def test_a_pass_has_a_page_and_programs(name):
    assert len(page(name)) > 100, f"{name}: a docstring says what it does, and when it does not"
    assert (ROOT / "tests" / "passes" / f"{name}.md").exists(), f"{name} has no Markdown tests"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for file, anchor in LINK.findall(prose(page.read_text())):
        if not file.startswith(("http:", "https:")):
            there = page.parent / file if file else page
            assert there.exists(), f"{page.name} links to {file}"
            assert not anchor or there.is_dir() or anchor in anchors(there.read_text()), (
                f"{page.name}: {anchor}"
            )


def prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"^(`{3,}).*?^\1$|`[^`\n]*`(?!\])", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """What headings are called in links."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
