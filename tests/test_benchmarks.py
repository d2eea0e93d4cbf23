"""benchmarks/: checkpoints of published shapes, and the page and plot of a small file of results."""

import importlib
import json
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from irloom.backends.machine import compiler
from tests.conftest import ROOT

ROW = {"unit": "decoded tokens/s", "more_is_better": True, "roofline_share": 0.875, "joules_per_token": None}
RESULTS = {
    "date": "2026-01-02",
    "versions": {"torch": "2.11.0"},
    "driver": "580.1",
    "card": {"name": "A Card", "bandwidth": 4.26e12, "flops": {"bf16": 779e12}},
    "rows": {
        "a": ROW
        | {
            "title": "8B <bf16>, alone",
            "goal": 260,
            "value": 250.25,
            "note": "Attention takes 6 us a layer.",
            "peers": {"vLLM 0.26": 200.2},
            "left_out": {"compile": "took more than 60 s"},
        },
        "b": ROW
        | {
            "title": "first",
            "unit": "ms to the first token",
            "more_is_better": False,
            "goal": 43,
            "value": 40.0,
            "roofline_share": None,
            "peers": {"vLLM 0.26": 48.0},
            "left_out": {},
        },
        "c": {"title": "broken", "failed": "out of memory"},
    },
    "remarks": ["Two programs at a time."],
}


@pytest.fixture
def benchmark(monkeypatch):
    """A module of benchmarks/, which are scripts beside each other."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_the_page_says_what_was_reached_and_by_how_much(benchmark):
    page = benchmark("render").page(RESULTS)
    assert "A Card, driver 580.1, 2026-01-02; torch 2.11.0." in page
    assert "memory at 4.26 TB/s, products at TFLOP/s: 779 in bf16." in page
    assert (
        "| 8B <bf16>, alone | decoded tokens/s | **250** | 260 missed | 88% |  | vLLM 0.26: 200, 1.25x |"
        in page
    )
    assert "| first | ms to the first token | **40** | 43 reached |  |  | vLLM 0.26: 48, 1.20x |" in page
    assert "- 8B <bf16>, alone: 250 of 260 decoded tokens/s, 96% of the goal. Attention takes" in page
    assert "- first:" not in page
    assert "How it was run, and what it does not show:\n\n- Two programs at a time." in page
    assert "| broken |  | failed |  |  |  | out of memory |" in page
    assert "- 8B <bf16>, alone: without compile: took more than 60 s" in page


def test_the_page_in_docs_is_that_of_the_newest_results(benchmark):
    newest = max((ROOT / "benchmarks/results").glob("cuda-*.json"))
    results, render = json.loads(newest.read_text()), benchmark("render")
    assert (ROOT / "docs/benchmarks.md").read_text() == render.page(results)
    assert (ROOT / "docs/benchmarks.svg").read_text() == render.plot(results)


def test_longer_bars_are_faster(benchmark):
    tree = ET.fromstring(benchmark("render").plot(RESULTS))
    bars = [float(r.get("width", 0)) for r in tree.findall("{*}rect") if r.get("x")]
    assert len(bars) == 4
    assert bars[0] / bars[1] == pytest.approx(250.25 / 200.2, rel=1e-2)
    assert bars[2] / bars[3] == pytest.approx(48 / 40, rel=1e-2), "of milliseconds fewer are faster"
    said = [t.text for t in tree.findall("{*}text")]
    assert "8B <bf16>, alone" in said and "200 vLLM 0.26" in said


@pytest.mark.parametrize("shape", ["Llama-3.1-8B", "Qwen3-0.6B", "Qwen3-30B-A3B"])
def test_a_shape_has_the_tensors_that_transformers_reads(benchmark, shape, tmp_path):
    """In one layer, narrow and with few experts; a missing or unexpected tensor would be reported."""
    import torch
    from transformers import AutoModelForCausalLM

    shapes, synthetic = benchmark("shapes"), benchmark("synthetic")
    narrow = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "head_dim": 8}
    few = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4}
    changed = {
        k: v for k, v in (narrow | few | {"num_experts_per_tok": 2}).items() if k in shapes.SHAPES[shape]
    }
    config = shapes.SHAPES[shape] | changed | {"vocab_size": 64}
    synthetic.write_model(tmp_path, config, shapes.tensors(config))
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.model.norm.weight.tolist() == [1.0] * 32
    logits = model(torch.arange(8)[None]).logits
    assert logits.isfinite().all() and logits.std() > 0


def test_every_row_names_passes_and_peers_that_exist(benchmark):
    from irloom.driver import Choice, passes_of
    from irloom.driver.peers import peer

    works = benchmark("works")
    for work in works.WORKS.values():
        assert passes_of(Choice("cuda", None, work.passes)), work.title
        assert all(str(peer(p)) == p for p in work.peers if p != works.VLLM_INT4)
        assert work.unit and work.shape in benchmark("shapes").SHAPES


@pytest.mark.skipif(compiler() is None, reason="the CPU target compiles C++")
def test_rows_of_one_model_are_measured_and_kept(benchmark, monkeypatch, tmp_path):
    """On the CPU: irloom and two peers, one of which cannot run there."""
    works, shapes = benchmark("works"), benchmark("shapes")
    tiny = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    tiny |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}
    monkeypatch.setitem(shapes.SHAPES, "tiny", shapes.QWEN3_06B | tiny)
    rows = {
        "alone": works.Work("alone", "tiny", "decode", 1e9, (1, 8, 6), (), ("transformers", "vllm")),
        "first": works.Work("first", "tiny", "first", 1e9, (1, 20, 2), (), ("transformers",)),
        "many": works.Work("many", "tiny", "output", 1.0, (3, 8, 6), (), (), runs=1),
        "build-tiny": works.Work("build", "tiny", "build", 60, peers=()),
        "open-tiny": works.Work("open", "tiny", "open", 5, peers=()),
        "wrong": works.Work("wrong", "tiny", "decode", 5, (1, 8, 6), ("no-such-pass",), ()),
    }
    monkeypatch.setattr(benchmark("gpu"), "WORKS", rows)
    monkeypatch.setattr(works, "WORKS", rows)
    monkeypatch.setattr(benchmark("kept"), "WORKS", rows)
    benchmark("gpu").main(
        [
            "--models",
            str(tmp_path / "models"),
            "--results",
            str(tmp_path),
            "--target",
            "cpu",
            "--repeats",
            "2",
        ]
    )
    (file,) = tmp_path.glob("cuda-*.json")
    kept = json.loads(file.read_text())
    assert "no-such-pass" in kept["rows"].pop("wrong")["failed"]
    assert not any("failed" in row for row in kept["rows"].values())
    assert all(row["value"] > 0 for row in kept["rows"].values())
    (name, value) = next(iter(kept["rows"]["alone"]["peers"].items()))
    assert name.startswith("transformers") and value > 0
    assert "GPU" in kept["rows"]["alone"]["left_out"]["vllm"]
    assert 0 < kept["rows"]["alone"]["roofline_share"] < 1
    assert len(kept["measured"]["alone"]["irloom"]["decode_samples"]) == 2
    page = benchmark("render").page(kept)
    assert "| alone | decoded tokens/s |" in page and "1,000,000,000 missed" in page
    assert "alone: without vllm" in page


def test_time_that_is_over_leaves_what_was_measured(benchmark, tmp_path):
    kept = benchmark("kept").Kept.today(tmp_path, None)
    work = benchmark("works").WORKS["8b-bf16-alone"]
    kept.begin("8b-bf16-alone", work)
    kept.leave_out("8b-bf16-alone", "vllm", "to load took more than 9 s")
    kept.peer("8b-bf16-alone", "vLLM 0.26", 203.0, {}, "vllm")
    assert kept.results["rows"]["8b-bf16-alone"]["left_out"] == {}
    assert "not measured" in benchmark("render").page(json.loads(kept.path.read_text()))
    kept.own("8b-bf16-alone", 261.0, {"bounds": {"decode_per_s": 290.0}})
    row = json.loads(kept.path.read_text())["rows"]["8b-bf16-alone"]
    assert row["value"] == 261.0 and row["peers"] == {"vLLM 0.26": 203.0}
    assert row["roofline_share"] == pytest.approx(0.9)
