"""The pytest plugin that comes with irloom: programs in Markdown are tests, and new ops are checked.

It is there wherever irloom is installed, so it does nothing, and imports nothing, until a test concerns
irloom: a Markdown file that is named, or has a fence such as ``py fuse-mlp``, or an op that a test defines.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from irloom.ir.op import Op

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
    text = file_path.read_text(encoding="utf-8", errors="replace")
    if not (parent.session.isinitpath(file_path) or FENCE.search(text)):
        return None
    from irloom.testing.markdown import Doc

    return Doc.from_parent(parent, path=file_path)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, Any]:
    report = yield
    if report.passed and (wrong := _wrong_ops(collector.config)):
        report.outcome, report.longrepr = "failed", wrong
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    result = yield
    if wrong := _wrong_ops(item.config):
        pytest.fail(wrong, pytrace=False)
    return result


CHECKED = pytest.StashKey[set[str]]()
"""Ops that were looked at, by name."""


def _wrong_ops(config: pytest.Config) -> str:
    """What is wrong with the ops that were defined since the last time; see ``check_op``."""
    core = sys.modules.get("irloom.ir.op")
    if core is None:
        return ""
    checked = config.stash.setdefault(CHECKED, set())
    own = str(Path(core.__file__ or "").parent)
    new = [op for op in core.OPS if op.name not in checked and not op.place.startswith(own)]
    checked.update(op.name for op in new)
    return "\n\n".join(filter(None, map(_wrong, new)))


def _wrong(op: Op) -> str:
    from irloom.ir.errors import IRError
    from irloom.testing.ops import check_op
    from irloom.testing.trial import CannotTry

    try:
        check_op(op)
    except CannotTry:  # its tests say what to try
        return ""
    except IRError as error:
        return str(error)
    return ""
