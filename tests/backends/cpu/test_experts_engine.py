"""A mixture of experts from its directory to answers: the library's own, from kernels alone."""

import json

import pytest
import torch

import irloom
from irloom import driver
from tests.tiny import COMMON, save_model

PROMPTS = ["once upon a time", "a"]
GREEDY = irloom.SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    """A directory and the library's model in it."""
    from transformers import MixtralConfig

    folder = tmp_path_factory.mktemp("mixtral")
    return folder, save_model(
        MixtralConfig(**{**COMMON, "num_hidden_layers": 2, "sliding_window": None}), folder
    )


def test_answers_are_the_librarys(mixtral, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, model = mixtral
    engine = driver.compile(folder, out=tmp_path / "engine")
    assert json.loads((engine / "manifest.json").read_text())["settings"]["fallbacks"] == {}
    for answer in driver.LLM(engine, threads=1).generate(PROMPTS, GREEDY):
        ids = torch.tensor([answer.prompt_token_ids])
        told = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
        assert answer.token_ids == told[0, ids.shape[1] :].tolist()
