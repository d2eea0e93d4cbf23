"""What is asked of an architecture, on some; all of them, sampled, against the page that a sweep wrote."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from irloom.zoo import COLUMNS, Told, examine, failing, names
from irloom.zoo.core import Row

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
TOLD = Told.read(PAGE).promised(version("transformers"))
PROMISED = {name: columns for name in names() if len(columns := TOLD.get(name, ())) > 1}


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_an_architecture_passes_every_column(name):
    row = examine(name)
    assert {column: getattr(row, column) for column in COLUMNS} == dict.fromkeys(COLUMNS, True)
    assert row.passed
    assert {"rms_norm", "rope", "attention", "silu_mul" if name == "llama" else "gelu_mul"} <= set(
        row.model_ops
    )
    assert row.flops_in_model_ops is not None
    assert row.flops_in_model_ops > 0.99


def test_only_what_is_asked_for_and_what_it_needs_is_done():
    row = examine("gpt2", ["logits"])
    assert (row.traced, row.logits) == (True, True)
    assert (row.ragged, row.raised) == (False, False)


def test_what_is_no_model_on_its_own_says_why():
    row = examine("musicgen")
    assert row.built == "its input is audio codes [codebooks * batch, T], not token ids"
    assert {getattr(row, c) for c in COLUMNS[1:]} == {"not reached: built"}


def test_a_reason_names_the_block_and_its_line():
    row = examine("reformer", ["logits"])
    assert not row.passed
    reason = next(r for c in COLUMNS if isinstance(r := getattr(row, c), str))
    assert re.search(r"modeling_reformer\.py:\d+", reason)


def test_a_row_reads_back_from_its_json():
    row = Row.failed("x", "because")
    assert Row.from_json(row.to_json()) == row


def test_the_page_has_every_architecture():
    missing = [name for name in names() if not re.search(rf"\b{re.escape(name)}\b", PAGE)]
    assert not missing


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMISED)
def test_an_architecture_does_what_the_page_says(name):
    lost = failing([examine(name)], PROMISED)
    assert not lost, "the page docs/models.md promises more"
