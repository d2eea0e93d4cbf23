"""Mistakes planted in real passes: bisect names pass and rewrite, and the reproducer shows it again."""

import pytest

from irloom.bisect import bisect_module
from irloom.driver import Choice, passes_of
from tests.passes.planted import PLANTED, program, told


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.what)
def test_a_mistake_is_named_and_reproduced(bug, tmp_path):
    found = told(bug, tmp_path)
    assert found.of == bug.of
    assert bug.rewrite in found.rewrite
    assert found.red, "the reproducer does not show the mistake"
    assert found.green, "the reproducer shows a mistake in the right pass"
    assert found.statements and found.statements <= 10


@pytest.mark.parametrize("model", sorted({bug.model for bug in PLANTED}))
def test_where_every_pass_is_right_nothing_is_found_or_written(model, tmp_path):
    assert bisect_module(program(model), passes_of(Choice()), out=tmp_path / "none.irloom") is None
    assert not list(tmp_path.iterdir())
