"""Models of Megatron-core answer as Megatron-core does, in every format and family."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from irloom.frontends.nemo import open_path
from tests.frontends.nemo.megatron import FAMILIES, PADDED, VOCAB
from tests.frontends.nemo.parity import TOLERANCE, difference, library_logits, traced_logits
from tests.frontends.nemo.writers import FORMATS, refused

SAMPLE = {
    "llama": "nemo1_gz.nemo",
    "llama31": "nemo2_calls",
    "mistral": "nemo1_zarr.nemo",
    "qwen2": "nemo1_tp2.nemo",
    "qwen3": "bridge",
    "phi3": "bridge_builder",
    "mixtral": "nemo1_dist.nemo",
    "qwen2_moe": "nemo2",
    "qwen3_moe": "bridge_apart",
    "gemma": "nemo1_dir",
    "nemotron": "nemo1_tp2_pp2.nemo",
    "starcoder2": "nemo2_tar.nemo",
    "stablelm": "megatron_common",
    "gpt2": "nemo1_old.nemo",
    "gpt_bigcode": "megatron_lm",
    "deepseek_v3": "bridge_apart",
    "deepseek_v2": "nemo2",
}
"""Each family once and each format once; the whole table is the slow test below."""


@pytest.fixture(scope="module")
def made(megatron) -> Path:
    return megatron([f"{family}:{kind}" for family, kind in SAMPLE.items()] + ["llama:nemo1.nemo"])


def test_the_sample_has_every_family_and_every_format():
    assert set(SAMPLE) == set(FAMILIES)
    assert {*SAMPLE.values(), "nemo1.nemo"} == set(FORMATS)


@pytest.mark.parametrize(("family", "kind"), [*SAMPLE.items(), ("llama", "nemo1.nemo")])
def test_a_traced_checkpoint_answers_as_megatron_does(made, family, kind):
    assert difference(made / family, traced_logits, kind) <= TOLERANCE


def test_the_family_is_found_by_what_the_tensors_show(made):
    found = {family: open_path(made / family / kind).family.model_type for family, kind in SAMPLE.items()}
    assert found == {family: "llama" if family == "llama31" else family for family in FAMILIES}


def test_words_that_only_fill_up_go_where_the_config_knows_how_many_there_are(made):
    assert open_path(made / "qwen3" / "bridge").config().vocab_size == VOCAB
    assert open_path(made / "llama" / "nemo1.nemo").config().vocab_size == PADDED


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_format_of_a_family(megatron, family, capsys):
    kinds = [kind for kind in FORMATS if not refused(family, kind)]
    folder = megatron([f"{family}:{kind}" for kind in kinds]) / family
    errors = {kind: difference(folder, library_logits, kind) for kind in kinds}
    with capsys.disabled():
        sys.stdout.write(f"\n{family}: {len(kinds)} formats, worst {max(errors.values()):.1e}")
    assert max(errors.values()) <= TOLERANCE, errors
