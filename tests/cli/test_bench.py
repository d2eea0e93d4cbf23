"""`irloom bench`: figures of a tiny checkpoint, beside a peer that reads the same folder."""

import importlib
import json

from irloom.cli import core
from tests.conftest import ROOT

SMALL = ("--requests", 2, "--prompt-tokens", 4, "--new-tokens", 3, "--repeats", 1)


def test_figures_for_people_and_for_programs(irloom, engine):
    found = irloom("bench", engine, *SMALL, "--json").json
    assert found["decode_per_s"] > 0 and found["output_per_s"] > 0
    assert found["alone"]["between_s"]["p50"] <= found["alone"]["between_s"]["p99"]
    assert found["roofline"]["device"]["bandwidth"] > 0
    page = irloom("bench", engine, *SMALL).out
    assert "after 4 prompt tokens" in page
    assert "2 together" in page
    assert "GB/s of bandwidth" in page


def test_a_peer_gets_the_same_requests_and_one_that_cannot_run_is_left_out(irloom, model):
    asked = ("--peer", "transformers", "--peer", "transformers(dtype=float99)", "--peer", "vllm", "--json")
    told = irloom("bench", model, *SMALL, *asked)
    assert told.code == core.Exit.OK
    found = told.json
    assert list(found["peers"]) == ["transformers"]
    peer = found["peers"]["transformers"]
    assert peer["about"].startswith("transformers ") and peer["about"].endswith(" eager")
    assert peer["decode_per_s"] > 0 and peer["output_per_s"] > 0
    assert found["left_out"] == {
        "transformers(dtype=float99)": "AttributeError: module 'torch' has no attribute 'float99'",
        "vllm": "RuntimeError: runs on a GPU only",
    }


def test_peers_cannot_read_an_engine(irloom, engine):
    told = irloom("bench", engine, *SMALL, "--peer", "batch")
    assert told.code == core.Exit.OK
    assert told.out.endswith("without batch: peers read the model, and this is its engine\n")


def test_a_peer_that_is_not_there(irloom, model):
    told = irloom("bench", model, "--peer", "vlm")
    assert told.code == core.Exit.USER
    assert told.err == "error: no peer 'vlm'\nhint: did you mean 'vllm'?\n"
    assert irloom("bench", model, "--peer", "vllm(fp8)").err.endswith("hint: write name=value\n")


def test_what_is_wrong_with_irloom_is_said_before_peers_run(irloom, model):
    told = irloom("bench", model, "--peer", "transformers", "--pipeline", "nope")
    assert told.code == core.Exit.USER and "nope" in told.err


def test_a_row_of_benchmarks_is_kept_beside_others(model, tmp_path, monkeypatch):
    """`benchmarks/cuda.py` runs the command as anybody would; here for the CPU."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    cuda, render = importlib.import_module("cuda"), importlib.import_module("render")
    tiny = cuda.Work("tiny", "tiny", "decode", 1, (2, 4, 3), (), ("vllm",))
    wrong = cuda.Work("wrong", "tiny", "open", 1, (1, 4, 3), ("no-such-pass",), ())
    opens = cuda.Work("opens", "tiny", "open", 60, (1, 4, 3), ("quantize(int8)",), ())
    monkeypatch.setattr(cuda, "WORKS", {"wrong": wrong, "tiny": tiny, "opens": opens})
    monkeypatch.setattr(cuda, "checkpoint", lambda shape, folder: model)
    for row in ("wrong", "tiny", "opens"):
        asked = ("--models", tmp_path, "--results", tmp_path, "--row", row, "--repeats", 1, "--target", "cpu")
        cuda.main([str(word) for word in asked])
    (path,) = tmp_path.glob("cuda-*.json")
    kept = json.loads(path.read_text())
    assert "no-such-pass" in kept["rows"]["wrong"]["failed"]
    row = kept["rows"]["tiny"]
    assert row["value"] > 0 and row["roofline_share"] > 0 and list(row["left_out"]) == ["vllm"]
    assert kept["measured"]["tiny"]["decode_samples"] and kept["versions"]["torch"]
    assert kept["rows"]["opens"]["value"] > kept["measured"]["opens"]["opened"] > 0
    page = render.page(kept)
    assert "| tiny | decoded tokens/s |" in page and "| wrong |  | failed |" in page
