"""Each architecture as networks of a target: one, several with ops between them, or none."""

import re
from pathlib import Path

import pytest

from irloom.ir.errors import PipelineError
from irloom.zoo import NetworkRow, as_networks, check_target, network_page, verdicts

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def rows():
    return [as_networks("tensorrt", name) for name in ("llama", "mamba", "musicgen")]


def test_a_row_says_how_ops_become_layers(rows):
    llama, mamba, musicgen = rows
    assert (llama.verdict, llama.segments, llama.outside) == ("whole", 1, {})
    assert llama.native["linear"] == "MatrixMultiply"
    assert set(llama.composed) >= {"rms_norm"}
    assert mamba.verdict == "split"
    assert "carried_selective_scan" in mamba.outside
    assert musicgen.verdict == "untraced"
    assert verdicts(rows) == {"whole": 1, "split": 1, "refused": 0, "of": 2}


def test_a_row_reads_back_from_its_json(rows):
    assert [NetworkRow.from_json(row.to_json()) for row in rows] == rows


def test_the_page_counts_and_gives_reasons(rows):
    page = network_page(rows, "tensorrt", "5.0", "docs/page.md")
    assert "| whole | split | refused | of |\n| --- | --- | --- | --- |\n| 1 | 1 | 0 | 2 |" in page
    assert "| llama | whole | 1 |" in page
    assert "TensorRT has no layer for carried_selective_scan: mamba" in page
    assert "musicgen" not in page


def test_a_target_without_networks_is_refused():
    with pytest.raises(PipelineError, match="target cpu builds no networks"):
        check_target("cpu")


def test_the_page_tells_of_every_architecture_that_traces():
    told, models = ((DOCS / name).read_text() for name in ("tensorrt_models.md", "models.md"))
    counted = re.search(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", told, re.MULTILINE)
    release = re.search(r"transformers ([\d.]+) that traces", told)
    assert counted
    assert release
    whole, split, refused, of = map(int, counted.groups())
    rows = re.findall(r"^\| \S+ \| (whole|split) \| \d+ \|", told, re.MULTILINE)
    assert (rows.count("whole"), rows.count("split"), refused, of) == (whole, split, 0, whole + split)
    assert re.search(rf"^\| {re.escape(release[1])} \| \d+ \| \d+ \| {of} \|", models, re.MULTILINE)
