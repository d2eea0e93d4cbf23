"""`irloom explain`: what is known of a model from its config alone."""

import json
import shutil

import pytest

from irloom.cli import core
from irloom.ir.plan import read_bytes

# what the tiny checkpoint is: see tiny.py
LAYERS, KV_HEADS, HEAD_DIM, F32 = 2, 2, 16, 4


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
    assert found["model_ops"].keys() >= {"rms_norm", "rope", "paged_attention", "linear"}
    assert found["flops_in_model_ops"] > 0.99
    assert found["targets"]["cpu"]["reference_bodies"] == {}
    bodies = found["targets"]["reference"]["reference_bodies"]
    assert bodies.keys() >= {"rms_norm", "paged_attention"}
    assert sum(op["flops_share"] for op in bodies.values()) == pytest.approx(1, abs=1e-4)


def test_caches_and_how_many_sequences_fit(irloom, config):
    found = irloom("explain", config, "--context", "64", "--memory", "1MiB", "--json").json
    token = 2 * LAYERS * KV_HEADS * HEAD_DIM * F32
    assert found["caches"]["token_bytes"] == token
    assert found["caches"]["sequence_bytes"] == 64 * token
    left = read_bytes("1MiB") - found["weights"]["bytes"]
    assert found["fits"]["sequences"] == left // (64 * token) > 0


def test_weights_that_do_not_fit_leave_no_room(irloom, config):
    assert irloom("explain", config, "--memory", "1kB", "--json").json["fits"]["sequences"] == 0


def test_in_half_the_bytes(irloom, config):
    whole, half = (irloom("explain", config, "--dtype", d, "--json").json for d in ("f32", "bf16"))
    assert whole["weights"]["bytes"] == 2 * half["weights"]["bytes"]
    assert whole["caches"]["token_bytes"] == 2 * half["caches"]["token_bytes"]
    assert half["targets"]["cpu"]["reference_bodies"] == {}, "the target computes in f32 in any case"


def test_for_people(irloom, config):
    said = irloom("explain", config / "config.json", "--memory", "1MiB").out
    for line in ("traced ", "model ops ", "cpu ", "weights: ", "decode at 8192 ", "pool "):
        assert f"\n{line}" in said
    assert said.splitlines()[-1].startswith("1.0 MiB hold ")


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
