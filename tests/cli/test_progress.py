"""Progress goes to stderr, and only to a terminal."""

import io

import pytest

from irloom.cli.progress import progress_bars


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "drawn"), [(io.StringIO(), False), (Terminal(), True)])
def test_bars_are_drawn_on_a_terminal_only(monkeypatch, capsys, stream, drawn):
    monkeypatch.setattr("sys.stderr", stream)
    with progress_bars() as report:
        report("trace", 1, 2)
        report("trace", 2, 2)
        report("weights", 5, 0)
    assert ("trace" in stream.getvalue()) is drawn
    assert capsys.readouterr().out == ""
