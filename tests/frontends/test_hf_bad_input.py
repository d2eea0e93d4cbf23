"""Damaged and hostile directories: one sentence, a hint, and no engine; never a traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from irloom.cli.core import main
from irloom.frontends.core import TraceOptions, frontend_of
from irloom.frontends.hf.trace import trace_directory
from irloom.ir.errors import CheckpointError, IrloomError

Change = Callable[[Path], object]
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path) -> Path:
    """A copy to damage; weights are linked, to be replaced where a test changes them."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((saved / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    return folder


def config(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**said, **fields}))

    return change


def file(name: str, data: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(data)


def header(edit: Callable[[dict[str, Any]], object]) -> Change:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + length])
        edit(entries)
        text = json.dumps(entries).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return change


def index(shard: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        names = load_file(folder / "a.safetensors")
        text = json.dumps({"weight_map": dict.fromkeys(names, shard)})
        (folder / "model.safetensors.index.json").write_text(text)

    return change


def twice(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    more = b'"model.norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    path.write_bytes((length + len(more)).to_bytes(8, "little") + b"{" + more + data[9:])


BAD: dict[str, tuple[Change, str]] = {
    "a config that is cut": (file("config.json", b"{"), "Expecting property name"),
    "no object": (file("config.json", b"[]"), "not a JSON object"),
    "no text": (file("config.json", b"\xff\xfe\x00"), "codec can't decode"),
    "brackets without end": (file("config.json", b"[" * 100_000), "recursion"),
    "an unknown kind": (config(model_type="banana"), "banana"),
    "a size in words": (config(hidden_size="big"), "hidden_size"),
    "a size below nothing": (config(hidden_size=-32), "negative dimension"),
    "a size past memory": (config(hidden_size=10**12), "is not built from its config"),
    "a size past 64 bits": (config(vocab_size=10**30), "is not built from its config"),
    "a billion layers": (config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "no heads": (config(num_attention_heads=0), "zero"),
    "heads that do not divide": (config(num_attention_heads=5), "attention heads"),
    "an unknown rotation": (config(rope_parameters={"rope_type": "banana"}), "banana"),
    "an unknown activation": (config(hidden_act="banana"), "banana"),
    "an unknown element": (config(dtype="banana"), "dtype is 'banana', which is no element of weights"),
    "an element that is no float": (config(torch_dtype="int8"), "torch_dtype is 'int8'"),
    "a quantization that is a word": (config(quantization_config="x"), "quantization_config is 'x'"),
    "a length in words": (config(max_position_embeddings="long"), "max_position_embeddings"),
    "an end in words": (config(eos_token_id="stop"), "eos_token_id"),
    "a damaged generation config": (file("generation_config.json", b"{"), "generation_config.json"),
    "a header that is too long": (file("model.safetensors", b"\xff" * 7 + b"\x00{}"), "its header claims"),
    "a header of brackets": (
        file("model.safetensors", (99_992).to_bytes(8, "little") + b"[" * 99_992), "its header is not JSON",
    ),
    "tensors that overlap": (
        header(lambda h: h[NORM].update(data_offsets=[0, 128])), "share bytes of the file",
    ),
    "a tensor before the file": (
        header(lambda h: h[NORM].update(data_offsets=[-128, 0])), "but offsets say 128",
    ),
    "a tensor of other dims": (header(lambda h: h[NORM].update(shape=[31])), "offsets say 128"),
    "dims past 64 bits": (header(lambda h: h[NORM].update(shape=[2**62, 2**62])), "offsets say 128"),
    "dims in words": (header(lambda h: h[NORM].update(shape="x")), "has no dtype, shape and data_offsets"),
    "a name that is there twice": (twice, "a name is there twice"),
    "a shard above": (index("../a.safetensors"), "which is not a file beside the index"),
    "a shard at the root": (index("/etc/passwd"), "which is not a file beside the index"),
    "a shard that is missing": (index("b.safetensors"), "is in b.safetensors, which is missing"),
    "code of its own": (
        config(model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}),
        "runs code of its own",
    ),
}  # fmt: skip


def use(folder: Path) -> None:
    """All that a compile reads of a directory; whether the architecture is right is another question."""
    front, options = frontend_of(folder), TraceOptions(check=False)
    front.facts(folder)
    checkpoint = front.checkpoint(folder, options)
    for name in checkpoint.names():
        checkpoint.read(name)


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_directory_is_refused_in_a_sentence_with_a_hint(model, case):
    change, words = BAD[case]
    change(model)
    with pytest.raises(IrloomError) as refused:
        use(model)
    assert words in str(refused.value)
    assert "\nhint: " in str(refused.value)


def test_the_command_shows_no_traceback_and_leaves_no_engine(model, tmp_path, capsys):
    index("../a.safetensors")(model)
    with pytest.raises(SystemExit) as stopped:
        main(["compile", str(model), "-o", str(tmp_path / "engine"), "--target", "reference"])
    assert stopped.value.code == 1
    shown = capsys.readouterr().err
    assert "error: " in shown
    assert "Traceback" not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_an_element_that_is_left_to_the_weights_is_theirs(model, stored):
    config(torch_dtype="auto", dtype="auto")(model)
    tensors = load_file(model / "model.safetensors")
    save_file({n: t.to(stored) for n, t in tensors.items()}, model / "model.safetensors")
    module = trace_directory(model, TraceOptions(check=False))
    weight = next(p for p in module.main.params if p.name == "q_proj_weight")
    assert weight.type.plain.torch == stored


def test_a_tensor_that_is_stored_otherwise_than_the_config_says_is_read_as_stored(model):
    config(dtype="bfloat16")(model)
    found = frontend_of(model).checkpoint(model, TraceOptions())
    assert found.elem(NORM).name == "f32"


def test_a_config_of_another_model_is_refused(model):
    config(intermediate_size=40)(model)
    with pytest.raises(CheckpointError, match="but the config makes it"):
        use(model)
