"""Files with bytes changed at random: whatever comes of it is an answer or one of irloom's errors."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from irloom.frontends.core import TraceOptions, frontend_of
from irloom.frontends.nemo import open_path
from irloom.ir.errors import IrloomError
from tests.frontends.gguf_files import write_model
from tests.frontends.nemo.plain import LLAMA, llama_tensors, pack, write_bridge, write_nemo1

TRIES = int(os.environ.get("IRLOOM_FUZZ", "200"))
"""Files of each kind; a few of them in every run of the tests."""

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def gguf(folder: Path) -> Path:
    write_model(folder / "m.gguf", "llama", llama(), {})
    return folder / "m.gguf"


def safetensors(folder: Path) -> Path:
    llama().save_pretrained(folder)
    return folder / "model.safetensors"


def config(folder: Path) -> Path:
    llama().save_pretrained(folder)
    return folder / "config.json"


def pickled(folder: Path) -> Path:
    llama().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(llama().state_dict(), folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def archive(folder: Path) -> Path:
    return pack(write_nemo1(folder / "made"), folder / "m.nemo")


def metadata(folder: Path) -> Path:
    return write_bridge(folder, llama_tensors(), LLAMA) / ".metadata"


KINDS: dict[str, tuple[Callable[[Path], Path], int]] = {
    "gguf": (gguf, 2000),
    "safetensors": (safetensors, 1500),
    "config.json": (config, 1000),
    "pytorch_model.bin": (pickled, 2000),
    "nemo archive": (archive, 3000),
    "distributed metadata": (metadata, 4000),
}
"""What writes a file of each kind, and how many of its first bytes, which say what it holds, are changed."""


def damaged(data: bytes, head: int, tries: int) -> Iterator[bytes]:
    """Copies of ``data`` with bytes of its head changed, cut out, repeated, or all after them missing."""
    dice = random.Random(11)
    for _ in range(tries):
        made = bytearray(data)
        for _ in range(dice.choice([1, 1, 1, 2, 8])):
            at = dice.randrange(min(head, len(made) - 1))
            change = dice.randrange(6)
            if change <= 2:
                made[at] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])
            elif change == 3:
                made[at : at + 8] = dice.choice([b"\xff" * 8, bytes(8), (1 << 62).to_bytes(8, "little")])
            elif change == 4:
                del made[at : at + dice.randrange(1, 16)]
            else:
                made[at:at] = made[at : at + dice.randrange(1, 16)]
        yield bytes(made[: dice.randrange(len(made))] if dice.randrange(8) == 0 else made)


def used(path: Path) -> None:
    """What a compile reads of a model before and after its trace."""
    folder = path if path.suffix in {".gguf", ".nemo"} else path.parent
    if path.name == ".metadata":
        opened = open_path(folder)
        opened.config()
        return
    front, options = frontend_of(folder), TraceOptions(check=False)
    front.facts(folder)
    checkpoint = front.checkpoint(folder, options)
    for name in checkpoint.names():
        checkpoint.read(name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "tries", [8, pytest.param(TRIES, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_damage_is_an_error_of_ours_or_none(tmp_path, monkeypatch, kind, tries):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write, head = KINDS[kind]
    path = write(tmp_path)
    data = path.read_bytes()
    used(path)
    refused = 0
    for n, made in enumerate(damaged(data, head, tries)):
        path.write_bytes(made)
        try:
            used(path)
        except IrloomError:
            refused += 1
        except Exception as error:
            shutil.copy(path, kept := Path(f"{path}.{n}"))
            raise AssertionError(f"{kept}: {type(error).__name__}: {error}") from error
    assert refused > tries // 4
