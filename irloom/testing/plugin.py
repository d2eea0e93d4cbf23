"""The pytest plugin that comes with irloom: programs in Markdown are tests, and new ops are checked.

It is there wherever irloom is installed, so it does nothing, and imports nothing, until a test concerns
irloom: a Markdown file that is named, or has a fence such as ``py fuse-mlp``, or an op that a test defines.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FENCE = re.compile(r"^```(py|error) +\S", re.MULTILINE)


def pytest_addoption(parser: pytest.Parser) -> None:
    names = ("--irloom-update", "--update")
    told = {"action": "store_true", "dest": "irloom_update"}
    says = "rewrite programs in Markdown that differ in text only"
    try:
        parser.addoption(*names, **told, help=says)
    except ValueError:  # another plugin has the short name
        parser.addoption(names[0], **told, help=says)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix != ".md":
        return None
    if not (parent.session.isinitpath(file_path) or FENCE.search(file_path.read_text(encoding="utf-8"))):
        return None
    from irloom.testing.markdown import Doc

    return Doc.from_parent(parent, path=file_path)
