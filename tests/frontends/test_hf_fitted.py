"""What is kept of a directory that fits: asked once, again where anything differs, and never of values."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from irloom.frontends.core import TraceOptions
from irloom.frontends.hf import fitted
from irloom.ir.errors import CheckpointError
from tests.frontends.test_hf_checkpoint import rewritten, saved, saved_moe
from tests.tiny import tokenizer

OPTIONS = TraceOptions()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "irloom"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The directories that the library was asked about."""
    seen: list[Path] = []
    ask = fitted._asked

    def counting(path: Path, options: TraceOptions) -> Any:
        seen.append(path)
        return ask(path, options)

    monkeypatch.setattr(fitted, "_asked", counting)
    return seen


@pytest.mark.parametrize("kind", ["Llama", "experts"])
def test_what_fitted_is_read_without_the_library(kind, tmp_path, cache, asked):
    folder = tmp_path / "model"
    saved_moe(folder) if kind == "experts" else saved(folder, tie_word_embeddings=True)
    first, second = (fitted.fitted(folder, OPTIONS) for _ in range(2))
    assert len(asked) == 1
    assert list(second.names()) == list(first.names())
    for name in first.names():
        assert second.dims(name) == first.dims(name) and second.elem(name) == first.elem(name)
        assert torch.equal(second.read(name), first.read(name))
        assert second.stored(name) == first.stored(name)


def test_other_tensors_or_another_config_are_checked_again(tmp_path, cache, asked):
    saved(tmp_path)
    fitted.fitted(tmp_path, OPTIONS)
    rewritten(tmp_path, lambda t: t.update({"model.norm.weight": torch.ones(31)}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.* is \[31\]"):
        fitted.fitted(tmp_path, OPTIONS)
    rewritten(tmp_path, lambda t: t.update({"model.norm.weight": torch.ones(32)}))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(CheckpointError, match="but the config makes it"):
        fitted.fitted(tmp_path, OPTIONS)
    assert len(asked) == 3


def test_tensors_that_are_tied_by_value_are_compared_each_time(tmp_path, cache, asked):
    saved(tmp_path, tie_word_embeddings=True)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    table = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": table.clone()}, file)
    fitted.fitted(tmp_path, OPTIONS)
    save_file(tensors | {"lm_head.weight": table + 1}, file)
    with pytest.raises(CheckpointError, match="differ, but config"):
        fitted.fitted(tmp_path, OPTIONS)


def test_a_damaged_file_is_made_again(tmp_path, cache, asked):
    saved(tmp_path)
    fitted.fitted(tmp_path, OPTIONS)
    (file,) = (cache / "fits").iterdir()
    file.write_text(file.read_text()[:-9])
    assert fitted.fitted(tmp_path, OPTIONS).names()
    assert fitted.fitted(tmp_path, OPTIONS).names()
    assert len(asked) == 2


def test_a_tokenizer_is_loaded_once_and_again_where_a_file_changes(tmp_path, cache, monkeypatch):
    saved(tmp_path)
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    loaded: list[Path] = []
    load = fitted.load_tokenizer
    monkeypatch.setattr(fitted, "load_tokenizer", lambda path: (loaded.append(path), load(path)))
    for _ in range(2):
        fitted.check_tokenizer(tmp_path)
    assert len(loaded) == 1
    (tmp_path / "tokenizer.json").rename(tmp_path / "told.json")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        fitted.check_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="its tokenizer does not load"):
            fitted.check_tokenizer(tmp_path)
    assert len(loaded) == 4
