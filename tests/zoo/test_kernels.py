"""Each architecture as launches of kernels: all of it, or with bodies."""

import re
from pathlib import Path

import pytest

from irloom.backends.core import Kernels, backend
from irloom.zoo import KernelRow, as_kernels, kernel_page, kernel_verdicts

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def rows():
    return [as_kernels("cuda", name) for name in ("llama", "deepseek_v32", "musicgen")]


def test_a_row_says_what_has_no_kernel(rows):
    llama, sparse, musicgen = rows
    assert (llama.verdict, llama.launches, llama.graphs, llama.bodies) == ("kernels", 5, True, {})
    assert sparse.verdict == "stepwise"
    assert "chosen keys" in sparse.bodies["paged_attention"]
    assert musicgen.verdict == "untraced"
    assert kernel_verdicts(rows) == {"kernels": 1, "bodies": 0, "stepwise": 1, "refused": 0, "of": 2}


def test_a_row_reads_back_from_its_json(rows):
    assert [KernelRow.from_json(row.to_json()) for row in rows] == rows


def test_the_page_counts_and_gives_reasons(rows):
    page = kernel_page(rows, "cuda", "5.0", "docs/page.md")
    assert "| kernels | bodies | stepwise | refused | of |\n| --- | --- | --- | --- | --- |" in page
    assert "| llama | kernels | 5 |  |" in page
    assert re.search(r"^- `paged_sparse_index`: .*: deepseek_v32$", page, re.MULTILINE)
    assert "musicgen" not in page


def test_what_a_target_refuses_is_told(monkeypatch):
    def none(m):
        raise ValueError("nothing fits")

    monkeypatch.setattr(backend("cuda"), "kernels", none, raising=True)
    row = as_kernels("cuda", "llama")
    assert row.verdict == "refused"
    assert row.said.startswith("ValueError: nothing fits")


def test_bodies_that_ask_nobody_stay_in_graphs():
    row = KernelRow(
        "some", traced=True, lowered=True, graphs=True, bodies=dict(Kernels(1, True, {"x": "y"}).bodies)
    )
    assert (row.verdict, row.said) == ("bodies", "x")


def test_the_page_tells_of_every_architecture_that_traces():
    told, models = ((DOCS / name).read_text() for name in ("cuda_models.md", "models.md"))
    counted = re.search(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", told, re.MULTILINE)
    release = re.search(r"transformers ([\d.]+) that traces", told)
    assert counted
    assert release
    *counts, of = map(int, counted.groups())
    rows = re.findall(r"^\| \S+ \| (kernels|bodies|stepwise) \| \d+ \|", told, re.MULTILINE)
    assert [rows.count(v) for v in ("kernels", "bodies", "stepwise")] == counts[:3]
    assert counts[3] == 0 and sum(counts) == of
    assert re.search(rf"^\| {re.escape(release[1])} \| \d+ \| \d+ \| {of} \|", models, re.MULTILINE)
