"""`irloom bench`: figures of a tiny checkpoint, beside a peer that reads the same folder."""

from irloom.cli import core

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
