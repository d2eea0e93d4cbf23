"""The page of a sweep: totals, a line per architecture, reasons with those they hold for."""

from irloom.zoo import page, totals
from irloom.zoo.core import COLUMNS, Row

FINE = Row(
    "fine",
    **dict.fromkeys(COLUMNS, True),
    flops_in_model_ops=0.999,
    model_ops={"rms_norm": 2},
    tensor_ops={"add": 3},
)
ODD, ODDER = (Row(name, built=True, traced="op `a|b` has no translation") for name in ("odd", "odder"))
ODD.settle()
ODDER.settle()


def test_totals_count_what_is_true_per_column():
    found = totals([FINE, ODD, ODDER])
    assert (found["built"], found["traced"], found["all"], found["of"]) == (3, 1, 1, 3)


def test_a_line_has_marks_the_share_and_the_ops():
    assert "| fine | yes | yes | yes | yes | yes | 99.9% | rms_norm | add |" in page([FINE], "5.0")


def test_a_reason_stands_once_with_all_it_holds_for_and_what_follows_from_it_not_at_all():
    text = page([FINE, ODD, ODDER], "5.0")
    assert "- odd, odder: *traced*: op `a\\|b` has no translation\n" in text
    assert "not reached" not in text


def test_one_column_that_fails_keeps_the_later_ones_from_being_reached():
    assert (ODD.logits, ODD.decode, ODD.raised) == ("not reached: traced",) * 3
