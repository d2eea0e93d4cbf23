"""Each architecture as networks of a target: one, several with ops between them, or none."""

import pytest

from irloom.ir.errors import PipelineError
from irloom.zoo import NetworkRow, as_networks, check_target, network_page, verdicts


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
