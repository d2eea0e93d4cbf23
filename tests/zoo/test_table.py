"""The page of a sweep: totals, a line per architecture, reasons with those they hold for."""

import dataclasses

from irloom.zoo import Told, failing, page, totals
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


class TestReleases:
    """One release is told in full; of older ones their totals, and what is otherwise there."""

    GONE = dataclasses.replace(FINE, name="gone")
    OLDER = dataclasses.replace(FINE, decode="logits differ by 1e-1", compiled="not reached: decode")
    BOTH = page([OLDER], "5.9.1", page([FINE, GONE], "5.23.0"))

    def test_totals_stand_per_release(self):
        rows = [line for line in self.BOTH.splitlines() if line.startswith("| 5.")]
        assert rows == [
            "| 5.23.0 | 2 | 2 | 2 | 2 | 2 | 2 | 2 | 2 | 2 |",
            "| 5.9.1 | 1 | 1 | 1 | 1 | 1 | 0 | 0 | 1 | 0 |",
        ]
        assert "of transformers 5.23.0," in self.BOTH

    def test_an_older_one_says_what_it_lacks(self):
        assert self.BOTH.endswith(
            "\n## transformers 5.9.1\n\nNot in it: gone.\n\n- fine: *decode*: logits differ by 1e-1\n"
        )

    def test_each_is_written_again_alone(self):
        assert page([FINE, self.GONE], "5.23.0", self.BOTH) == self.BOTH
        assert page([self.OLDER], "5.9.1", self.BOTH) == self.BOTH

    def test_a_newer_one_takes_the_place_of_the_one_in_full(self):
        text = page([ODD], "5.24.0", self.BOTH)
        assert "of transformers 5.24.0," in text
        assert text.index("| 5.24.0 | 1 |") < text.index("| 5.23.0 | 2 |") < text.index("| 5.9.1 | 1 |")

    def test_what_was_promised_reads_back(self):
        told = Told.read(self.BOTH)
        assert told.promised("5.23.0") == {name: set(COLUMNS) for name in ("fine", "gone")}
        assert told.promised("5.24.0") == told.promised("5.23.0")
        assert set(COLUMNS) - told.promised("5.9.1")["fine"] == {"decode", "compiled"}

    def test_only_what_was_promised_counts_as_broken(self):
        told = Told.read(self.BOTH)
        assert failing([self.OLDER], told.promised("5.9.1")) == {}
        assert failing([self.OLDER], told.promised("5.23.0")) == {
            ("decode", "logits differ by 1e-1"): [("fine", "")]
        }


def test_what_is_enough_at_full_size_alone_says_so():
    row = Row("wide", **dict.fromkeys(COLUMNS, True), flops_in_model_ops=0.96, flops_at_full_size=0.9994)
    assert "| 96.0%, 99.9% at full size |" in page([row], "5.0")
