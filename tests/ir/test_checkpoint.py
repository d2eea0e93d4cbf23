"""Checkpoints: one file or shards, read a tensor at a time, and refused when they are not whole."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from irloom.ir.checkpoint import RandomCheckpoint, SafetensorsCheckpoint
from irloom.ir.elem import ELEMS
from irloom.ir.errors import CheckpointError

TENSORS = {
    "layers.0.w": torch.randn(8, 4),
    "layers.1.w": torch.randn(8, 4).bfloat16(),
    "half": torch.randn(3).half(),
    "eight": torch.randn(4, 4).to(torch.float8_e4m3fn),
    "ids": torch.arange(5),
    "mask": torch.tensor([True, False]),
    "none": torch.empty(0, 4),
    "scalar": torch.tensor(2.5),
}
INCOMPLETE = "\nhint: the download may be incomplete; fetch the file again"


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        SafetensorsCheckpoint(path)
    return str(refused.value).replace(str(path), "PATH")


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    first, second = (dict(list(TENSORS.items())[part]) for part in (slice(4), slice(4, None)))
    save_file(first, tmp_path / "model-1.safetensors")
    save_file(second, tmp_path / "model-2.safetensors")
    index = {**dict.fromkeys(first, "model-1.safetensors"), **dict.fromkeys(second, "model-2.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return tmp_path


def test_a_single_file_and_its_directory_read_alike(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        checkpoint = SafetensorsCheckpoint(path)
        assert set(checkpoint.names()) == set(TENSORS)
        for name, wanted in TENSORS.items():
            read = checkpoint.read(name)
            assert torch.equal(
                read.view(torch.uint8) if name == "eight" else read,
                wanted if name != "eight" else wanted.view(torch.uint8),
            )
            assert (checkpoint.dims(name), checkpoint.elem(name).torch) == (wanted.shape, wanted.dtype)


def test_shards_read_as_one(sharded):
    checkpoint = SafetensorsCheckpoint(sharded)
    assert set(checkpoint.names()) == set(TENSORS)
    for name in ("layers.1.w", "ids"):
        assert torch.equal(checkpoint.read(name), TENSORS[name])


def test_the_bytes_of_a_tensor_can_be_linked_to(sharded):
    at = SafetensorsCheckpoint(sharded).stored("layers.1.w")
    stored = at.path.read_bytes()[at.offset : at.offset + at.nbytes]
    assert stored == TENSORS["layers.1.w"].view(torch.uint8).numpy().tobytes()


def test_a_tensor_at_an_odd_offset_reads_all_the_same(tmp_path):
    values = torch.arange(4.0)
    header = {"x": {"dtype": "F32", "shape": [4], "data_offsets": [1, 17]}}
    write(tmp_path / "model.safetensors", header, b"?" + values.numpy().tobytes())
    assert torch.equal(SafetensorsCheckpoint(tmp_path).read("x"), values)


def test_an_absent_shard_is_named(sharded):
    (sharded / "model-2.safetensors").unlink()
    assert refusal(sharded) == (
        "PATH/model.safetensors.index.json: `ids` is in model-2.safetensors, which is missing\n"
        "hint: fetch it (4 of 8 tensors are in it)"
    )


def test_a_truncated_shard_is_named(sharded):
    shard = sharded / "model-1.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-3])
    assert refusal(sharded) == (
        f"PATH/model-1.safetensors: `eight` ends at byte {len(whole)}, but the file has {len(whole) - 3}"
        f"{INCOMPLETE}"
    )


def test_an_index_that_names_an_absent_tensor_is_refused(sharded):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["layers.2.w"] = "model-1.safetensors"
    path.write_text(json.dumps(index))
    assert refusal(sharded) == (
        "PATH/model.safetensors.index.json: `layers.2.w` should be in model-1.safetensors, "
        "which does not hold it\n"
        "hint: the index is that of another checkpoint; fetch both again"
    )


def test_an_index_cannot_point_outside_its_directory(sharded):
    path = sharded / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"w": "../w.safetensors"}}))
    assert refusal(sharded) == (
        "PATH/model.safetensors.index.json: `w` is in '../w.safetensors', "
        "which is not a file beside the index\n"
        "hint: nothing outside of the directory is read; put the shards beside the index"
    )


def test_an_index_without_a_map_is_refused(sharded):
    (sharded / "model.safetensors.index.json").write_text("[]")
    assert refusal(sharded) == (
        "PATH/model.safetensors.index.json: no `weight_map` from tensor names to files\n"
        "hint: fetch the index again"
    )


def test_a_place_without_weights_is_refused(tmp_path):
    hint = "\nhint: a checkpoint is model.safetensors, or shards with model.safetensors.index.json"
    assert refusal(tmp_path) == f"PATH: no .safetensors file{hint}"
    save_file(TENSORS, tmp_path / "a.safetensors")
    save_file(TENSORS, tmp_path / "b.safetensors")
    assert refusal(tmp_path) == f"PATH: 2 .safetensors files and no index{hint}"
    assert refusal(tmp_path / "gone") == "PATH: no such file or directory"


F32X2 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = "\nhint: the file is damaged; fetch it again, or write it with the safetensors library"
HEADERS = {
    "not JSON": (
        b"{]",
        (
            "its header is not JSON: Expecting property name enclosed in double quotes: "
            f"line 1 column 2 (char 1){INCOMPLETE}"
        ),
    ),
    "not an object": ([], f"its header is not a JSON object{INCOMPLETE}"),
    "no offsets": (
        {"x": {"dtype": "F32"}},
        f"`x` has no dtype, shape and data_offsets in the header{DAMAGED}",
    ),
    "unknown dtype": (
        {"x": {**F32X2, "dtype": "F6"}},
        (
            "`x` is stored as F6\n"
            "hint: irloom reads F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64, I32, I16, I8, U8, BOOL, F8_E8M0"
        ),
    ),
    "wrong span": ({"x": {**F32X2, "shape": [3]}}, f"`x` is F32[3], 12 bytes, but offsets say 8{DAMAGED}"),
    "negative": (
        {"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}},
        f"`x` is F32[-2], -8 bytes, but offsets say -8{DAMAGED}",
    ),
    "past the end": (
        {"x": {**F32X2, "data_offsets": [4, 12]}},
        f"`x` ends at byte 82, but the file has 78{INCOMPLETE}",
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies_is_refused_before_anything_is_read(tmp_path, case):
    header, message = HEADERS[case]
    write(tmp_path / "model.safetensors", header, bytes(8))
    assert refusal(tmp_path) == f"PATH/model.safetensors: {message}"


def test_a_header_longer_than_its_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, {}, length=1 << 60)
    assert refusal(path) == f"PATH: its header claims {1 << 60} bytes, but the file has 10{INCOMPLETE}"
    path.write_bytes(b"abc")
    assert refusal(path) == f"PATH: its header claims 6513249 bytes, but the file has 3{INCOMPLETE}"


def test_a_file_cut_after_it_was_opened_is_noticed(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(4)}, path)
    checkpoint = SafetensorsCheckpoint(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError) as refused:
        checkpoint.read("x")
    size = path.stat().st_size
    assert str(refused.value) == (
        f"{path}: 16 bytes wanted at {size - 12}, but the file ends at {size}\n"
        "hint: the file changed since it was opened, or its download is incomplete"
    )


def test_random_weights_depend_on_seed_and_name_alone():
    dims = {"a.weight": (16, 64), "norm.weight": (64,), "b.bias": (64,), "c.weight": (16, 64)}
    first, again = RandomCheckpoint(7, dims), RandomCheckpoint(7, dict(reversed(dims.items())))
    for name in dims:
        assert torch.equal(first.read(name), again.read(name))
        assert first.dims(name) == first.read(name).shape
    assert not torch.equal(first.read("a.weight"), first.read("c.weight"))
    assert not torch.equal(first.read("a.weight"), RandomCheckpoint(8, dims).read("a.weight"))
    assert abs(first.read("norm.weight").mean() - 1) < 0.02
    assert abs(first.read("a.weight").std() * 8 - 1) < 0.1
    for name in ("bf16", "f8e4m3"):
        elem = ELEMS[name]
        assert RandomCheckpoint(7, dims, elem).read("a.weight").dtype == elem.torch


def test_an_undeclared_name_has_no_random_weight():
    with pytest.raises(CheckpointError) as refused:
        RandomCheckpoint(7, {"a.weight": (2,)}).read("a.wieght")
    assert str(refused.value) == "random-7: no tensor `a.wieght`\nhint: the nearest name in it is `a.weight`"
