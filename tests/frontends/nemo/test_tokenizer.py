"""The tokenizer comes along with the checkpoint where its files do, and with it the end of an answer."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import irloom
from irloom.frontends.facts import fingerprint
from irloom.frontends.nemo import open_path
from irloom.frontends.nemo.frontend import Nemo
from irloom.frontends.nemo.tokenizer import end_tokens, tokenizer_files
from irloom.ir.errors import CheckpointError
from tests.frontends.nemo.plain import LLAMA, llama_tensors, pack, write_bridge, write_nemo1
from tests.frontends.nemo.writers import tokenizer

MERGES = "#version: 0.2\nl o\nlo w\ne r\n"
WORDS = {w: i for i, w in enumerate(["<|endoftext|>", "l", "o", "w", "e", "r", "Ġ", "lo", "low", "er"])}


@pytest.fixture
def bridge(tmp_path) -> Path:
    folder = write_bridge(tmp_path / "model", llama_tensors(), LLAMA)
    tokenizer(folder / "tokenizer")
    return tmp_path / "model"


def test_a_hugging_face_tokenizer_is_copied_out_once(bridge, cache):
    opened = open_path(bridge)
    place = tokenizer_files(opened)
    assert AutoTokenizer.from_pretrained(place)("w3 w99 </s>")["input_ids"] == [3, 99, 2]
    written = (place / "tokenizer.json").stat().st_mtime_ns
    assert tokenizer_files(opened) == place
    assert (place / "tokenizer.json").stat().st_mtime_ns == written
    assert [p.name for p in cache.iterdir()] == [place.name]


def test_the_end_of_an_answer_is_the_tokenizers(bridge):
    facts = Nemo().facts(bridge)
    assert (facts.eos, facts.max_context) == ((2,), 32)


def test_vocabulary_and_merges_in_an_archive_are_gpt2s(tmp_path):
    said = {"library": "megatron", "type": "GPT2BPETokenizer", "model": None}
    names = {"vocab_file": "nemo:0a1b_vocab.json", "merge_file": "nemo:0a1b_merges.txt"}
    model = write_nemo1(tmp_path / "model", tokenizer={**said, **names})
    (model / "0a1b_vocab.json").write_text(json.dumps(WORDS))
    (model / "0a1b_merges.txt").write_text(MERGES)
    opened = open_path(pack(model, tmp_path / "m.nemo"))
    found = AutoTokenizer.from_pretrained(tokenizer_files(opened))
    assert found("lower low")["input_ids"] == [8, 9, 6, 8]
    assert end_tokens(opened) == (0,)


def test_a_vocabulary_without_merges_is_no_tokenizer(tmp_path):
    model = write_nemo1(tmp_path / "model", tokenizer={"vocab_file": "nemo:0a1b_vocab.json"})
    (model / "0a1b_vocab.json").write_text(json.dumps(WORDS))
    with pytest.raises(CheckpointError, match="no tokenizer in it"):
        Nemo().tokenizer(model)


def test_a_sentencepiece_model_says_what_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr("irloom.frontends.nemo.tokenizer._installed", lambda module: False)
    model = write_nemo1(tmp_path / "model", tokenizer={"model": "nemo:0a1b_tokenizer.model"})
    (model / "0a1b_tokenizer.model").write_bytes(b"\x0a\x00")
    with pytest.raises(CheckpointError, match="SentencePiece") as caught:
        Nemo().tokenizer(model)
    assert "pip install sentencepiece protobuf" in caught.value.hint
    assert Nemo().facts(model).eos == ()


def test_a_tokenizer_that_only_the_hub_has_is_named(tmp_path):
    said = {"library": "huggingface", "type": "meta-llama/Llama-3.1-8B"}
    with pytest.raises(CheckpointError, match="no tokenizer in it") as caught:
        Nemo().tokenizer(write_nemo1(tmp_path / "model", tokenizer=said))
    assert "meta-llama/Llama-3.1-8B" in caught.value.hint


def test_a_damaged_tokenizer_leaves_nothing(bridge, cache):
    (bridge / "iter_0000001" / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="its tokenizer does not load"):
        Nemo().tokenizer(bridge)
    assert not list(cache.iterdir())


def test_a_name_in_the_config_does_not_lead_out_of_the_checkpoint(tmp_path):
    (tmp_path / "secret.model").write_bytes(b"x")
    for name in ("../secret.model", str(tmp_path / "secret.model")):
        model = write_nemo1(tmp_path / f"m{len(name)}", tokenizer={"model": f"nemo:{name}"})
        with pytest.raises(CheckpointError, match="no tokenizer in it"):
            Nemo().tokenizer(model)


def test_code_that_a_tokenizer_brings_is_not_run(bridge, tmp_path):
    folder = bridge / "iter_0000001" / "tokenizer"
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with contextlib.suppress(CheckpointError):
        Nemo().tokenizer(bridge)
    assert not (tmp_path / "ran").exists()


def test_a_nemo_checkpoint_is_compiled_and_answers(bridge):
    llm = irloom.LLM(bridge, "reference", max_tokens=16, max_seqs=2, max_context=32)
    (output,) = llm.generate([[3, 4, 5]], irloom.SamplingParams(max_tokens=4, temperature=0.0))
    assert len(output.token_ids) <= 4
    assert llm.manifest.settings["eos"] == [2]
    assert llm.tokenizer is not None


def test_another_checkpoint_is_another_engine(tmp_path):
    prints = set()
    for seed in range(2):
        path = tmp_path / "model"
        tensors = {k: t + seed for k, t in llama_tensors().items()}
        write_bridge(path, tensors, LLAMA)
        prints.add(fingerprint(path))
    assert len(prints) == 2
