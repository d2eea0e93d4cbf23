"""One architecture that crashes or hangs never stops the sweep."""

from irloom.zoo import sweep
from tests.zoo.specimens import doomed


def test_rows_come_in_the_order_of_the_names_and_are_told_as_they_are_done():
    told = []
    rows = sweep(["a", "b", "c", "a"], jobs=2, columns=("built",), report=told.append, work=doomed)
    assert [row.name for row in rows] == ["a", "b", "c"]
    assert sorted(row.name for row in told) == ["a", "b", "c"]
    assert all(row.built is True for row in rows)


def test_a_crash_is_the_reason_of_its_row_and_the_rest_goes_on():
    first, died, last = sweep(["a", "dies", "b"], columns=("built",), work=doomed)
    assert (first.built, last.built) == (True, True)
    assert died.built == "the process died with code 3"
    assert died.decode == "not reached: built"


def test_a_hang_is_given_up():
    hung, last = sweep(["hangs", "a"], limit=20, columns=("built",), work=doomed)
    assert hung.built == "gave up after 20 seconds"
    assert last.built is True
