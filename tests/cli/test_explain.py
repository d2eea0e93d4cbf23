"""`irloom explain`: what is known of a model from its config alone."""

import json
import re
import shutil

import pytest

from irloom.cli import core
from irloom.ir.plan import read_bytes

# what the tiny checkpoint is: see tiny.py
LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, F32, CONTEXT = 2, 4, 2, 16, 64, 4, 128


@pytest.fixture(scope="module")
def config(model, tmp_path_factory):
    """A directory with nothing but the tiny model's config."""
    folder = tmp_path_factory.mktemp("config")
    shutil.copyfile(model / "config.json", folder / "config.json")
    return folder


@pytest.fixture(scope="module")
def facts(model):
    from safetensors.torch import load_file

    return load_file(model / "model.safetensors")


def test_no_weights_are_needed(irloom, config, facts):
    told = irloom("explain", config, "--json")
    assert told.code == 0
    assert told.json["traces"] is True
    assert told.json["weights"]["parameters"] == sum(x.numel() for x in facts.values())


def test_layers_model_ops_and_targets(irloom, config):
    found = irloom("explain", config, "--target", "cpu", "--target", "reference", "--json").json
    assert found["layers"] == [f"layer: {found['layers'][0].split()[1]} nodes, layers 0-{LAYERS - 1}"]
    assert found["model_ops"].keys() >= {"rms_norm", "rope_append", "paged_attention", "linear"}
    assert found["flops_in_model_ops"] > 0.99
    assert found["targets"]["cpu"]["reference_bodies"] == {}
    bodies = found["targets"]["reference"]["reference_bodies"]
    assert bodies.keys() >= {"rms_norm", "paged_attention"}
    assert sum(op["flops_share"] for op in bodies.values()) == pytest.approx(1, abs=1e-4)


def test_a_target_of_networks_says_what_becomes_of_each_op(irloom, config):
    found = irloom("explain", config, "--target", "tensorrt", "--json").json["targets"]["tensorrt"]
    assert (found["segments"], found["reference_bodies"]) == (1, {})
    ops = {op["op"]: op for op in found["ops"]}
    assert (ops["kv_append"]["how"], ops["kv_append"]["layers"]) == ("native", ["KVCacheUpdate"])
    assert (ops["rms_norm"]["how"], ops["rms_norm"]["nodes"]) == ("composed", 2 * LAYERS + 1)
    said = irloom("explain", config, "--target", "tensorrt").out
    assert re.search(r"^tensorrt +1 segment, every op in layers$", said, re.MULTILINE)
    assert "MatrixMultiply: linear" in said
    assert "composed: rms_norm 5: ElementWise, Reduce, Unary" in said


def test_ops_between_networks_are_counted_with_their_reason(irloom, config):
    paged = irloom("explain", config, "--target", "tensorrt", "--with", "kv-plan(page=16)").out
    assert f"{LAYERS + 1} segments, ops outside of them do" in paged
    assert f"outside: paged_attention {LAYERS}: keys and values lie in pages" in paged


def test_caches_and_how_many_sequences_fit(irloom, config):
    found = irloom("explain", config, "--context", "64", "--memory", "1MiB", "--json").json
    token = 2 * LAYERS * KV_HEADS * HEAD_DIM * F32
    assert found["caches"]["token_bytes"] == token
    assert found["caches"]["sequence_bytes"] == 64 * token
    left = read_bytes("1MiB") - found["weights"]["bytes"]
    assert found["fits"]["sequences"] == left // (64 * token) > 0


def test_weights_that_do_not_fit_leave_no_room(irloom, config):
    assert irloom("explain", config, "--memory", "1kB", "--json").json["fits"]["sequences"] == 0


def test_what_a_decode_costs(irloom, config, facts):
    """By hand: each weight but the table once; keys and values of 64 tokens; scores and sums of 4 heads."""
    found = irloom("explain", config, "--context", "64", "--json").json
    read = sum(x.numel() for name, x in facts.items() if "embed" not in name) + HIDDEN
    cached = 64 * 2 * LAYERS * KV_HEADS * HEAD_DIM
    assert found["weights"]["active"] == read
    assert 1 < found["decode"]["bytes"] / ((read + cached) * F32) < 1.1, "what ops hand on comes on top"
    products = sum(2 * x.numel() for name, x in facts.items() if x.dim() == 2 and "embed" not in name)
    attention = 4 * LAYERS * HEADS * HEAD_DIM * 64
    assert found["decode"]["flops"] == pytest.approx(products + attention, rel=0.04), "norms are few"


def test_the_context_is_what_the_model_is_made_for(irloom, config):
    assert irloom("explain", config, "--json").json["context"] == CONTEXT


def test_what_a_device_is_predicted_to_take(irloom, config):
    """Memory bounds every step of so small a model: its bytes at 1 MB/s, in bytes the nodes' own."""
    told = irloom("explain", config, "--context", 64, "--device", "h200(bandwidth=1MB, memory=1GB)", "--json")
    found = told.json
    (slow,) = found["devices"]
    alone, *_, prefill = slow["steps"]
    assert [s["seqs"] for s in slow["steps"]] == [1, 16, 64, 1]
    assert alone["seconds"] == pytest.approx(found["decode"]["bytes"] / 1e6)
    assert prefill["seconds"] == pytest.approx(64 * found["prefill"]["bytes"] / 1e6)
    assert prefill["tokens_per_second"] == pytest.approx(64 / prefill["seconds"])
    assert {s["bound"] for s in slow["steps"]} == {"memory"}
    assert sum(alone["ops"].values()) == pytest.approx(1)
    assert next(iter(alone["ops"])) == "linear"
    each = found["caches"]["sequence_bytes"]
    assert slow["sequences"] == (10**9 - found["weights"]["bytes"]) // each


def test_a_device_that_is_too_small_says_so(irloom, config):
    said = irloom("explain", config, "--device", "h200(memory=1MB)", "--device", "cpu").out
    assert "\nh200: 4.8 TB/s, 66.9 TFLOP/s in f32, 976.6 KiB; " in said
    assert said.count(", does not fit\n") == 2, "the steps of 16 and of 64 sequences"
    assert "\ncpu: " in said


def test_a_device_and_a_pass_that_are_none(irloom, config):
    assert "hint: did you mean 'h200'?" in irloom("explain", config, "--device", "h20").err
    assert irloom("explain", config, "--with", "quantise").err.startswith("error: no pass 'quantise'")


def test_a_pass_more_shows_in_the_figures(irloom, config):
    plain = irloom("explain", config, "--json").json
    packed = irloom("explain", config, "--with", "quantize(int4, group=32)", "--json").json
    assert packed["weights"]["parameters"] == plain["weights"]["parameters"]
    assert packed["weights"]["bytes"] < 0.4 * plain["weights"]["bytes"]
    assert packed["decode"]["bytes"] < 0.5 * plain["decode"]["bytes"]
    alone = irloom("explain", config, "--pipeline", "canonicalize", "--json").json
    assert alone["layers"] == [] and alone["caches"]["pools"] == []


def test_in_half_the_bytes(irloom, config):
    whole, half = (irloom("explain", config, "--dtype", d, "--json").json for d in ("f32", "bf16"))
    assert whole["weights"]["bytes"] == 2 * half["weights"]["bytes"]
    assert whole["caches"]["token_bytes"] == 2 * half["caches"]["token_bytes"]
    assert half["targets"]["cpu"]["reference_bodies"] == {}, "the target computes in f32 in any case"


def test_for_people(irloom, config):
    said = irloom("explain", config / "config.json", "--memory", "1MiB").out
    for line in ("traced ", "model ops ", "cpu ", "weights: ", f"decode at {CONTEXT} ", "pool "):
        assert f"\n{line}" in said
    assert said.splitlines()[-1].startswith("1.0 MiB hold ")


def test_an_engine_is_explained_as_it_is(irloom, model, engine):
    of_engine, of_model = (irloom("explain", x, "--json").json for x in (engine, model))
    assert of_engine["targets"] == of_model["targets"]
    assert of_engine["decode"] == of_model["decode"]
    assert of_engine["context"] == CONTEXT


def test_a_model_that_does_not_trace_fails_a_build(irloom, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    told = irloom("explain", tmp_path)
    assert told.code == core.Exit.USER
    assert told.out.startswith(f"{tmp_path.name} does not trace\n`vit` has no causal language model")
    as_json = irloom("explain", tmp_path, "--json")
    assert as_json.code == core.Exit.USER
    assert as_json.json["traces"].startswith("`vit` has no causal language model")


def test_a_model_that_is_not_there(irloom, tmp_path):
    told = irloom("explain", tmp_path / "nothing")
    assert told.code == core.Exit.USER
    assert "no such file or directory" in told.err
