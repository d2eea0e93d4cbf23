"""Files are read as UTF-8 or refused, and written whole or not at all."""

import pytest

from irloom.ir.errors import IRError, IrloomError
from irloom.ir.files import read_text, write_whole


def test_bytes_that_are_no_text_are_refused_with_the_line(tmp_path):
    path = tmp_path / "p.irloom"
    path.write_bytes(b"# irloom 1\ndef main(x: f32[4]):\n    y = sil\xff(x)\n    return y\n")
    with pytest.raises(IRError) as caught:
        read_text(path)
    assert str(caught.value) == f"p.irloom: byte 43 is not UTF-8\nhint: write it again\n  --> {path}:3"


@pytest.mark.parametrize("data", ["two\n", b"two\n"])
def test_what_is_written_takes_the_place_of_what_was_there(tmp_path, data):
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    write_whole(path, data)
    assert path.read_text() == "two\n" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["missing/a.txt", "."])
def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path, place):
    with pytest.raises(IrloomError, match="cannot be written: "):
        write_whole(tmp_path / place, "text")
    assert list(tmp_path.iterdir()) == []
    assert not list(tmp_path.parent.glob(".*.part"))
