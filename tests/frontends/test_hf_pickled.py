"""PyTorch's `.bin` weights: mapped from the file, and never a reason to run what the file says."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from irloom.frontends.hf.checkpoint import open_checkpoint, open_raw, read_config
from irloom.frontends.hf.pickled import PickledCheckpoint
from irloom.frontends.hf.skeleton import skeleton
from irloom.ir.errors import CheckpointError
from irloom.ir.weights import Cast, Tensor, expression_blocks
from tests.tiny import llama_config, save_model


def pickled(tensors: Any, path: Path, **options: Any) -> Path:
    torch.save(tensors, path, **options)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        PickledCheckpoint(path)
    return str(refused.value).replace(str(path.parent), "PATH")


@pytest.fixture
def model(tmp_path) -> Any:
    """A tiny Llama in `pytorch_model.bin`, its safetensors gone."""
    made = save_model(llama_config(num_hidden_layers=2, tie_word_embeddings=True), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    pickled(made.state_dict(), tmp_path / "pytorch_model.bin")
    return made


def opened(path: Path) -> Any:
    return open_checkpoint(path, skeleton(read_config(path), torch.float32))


def same(checkpoint: Any, wanted: dict[str, torch.Tensor]) -> None:
    assert set(checkpoint.names()) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(checkpoint.read(name), tensor), name
        assert checkpoint.dims(name) == tensor.shape
        assert checkpoint.elem(name).torch == tensor.dtype


def test_a_model_reads_back_with_its_head_tied(model, tmp_path):
    same(opened(tmp_path), model.state_dict())


def test_shards_are_read_as_one(model, tmp_path):
    state = model.state_dict()
    (tmp_path / "pytorch_model.bin").unlink()
    places = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(state)}
    for shard in set(places.values()):
        pickled({n: t.clone() for n, t in state.items() if places[n] == shard}, tmp_path / shard)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    same(opened(tmp_path), state)
    (tmp_path / "pytorch_model-1.bin").unlink()
    with pytest.raises(CheckpointError, match=r"is in pytorch_model-1\.bin, which is missing"):
        opened(tmp_path)


def test_safetensors_beside_it_are_preferred(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even an archive")
    same(opened(tmp_path), model.state_dict())


def test_tensors_lie_in_the_file_as_torch_left_them(tmp_path):
    """Parts of one storage, transposed ones, scalars and every kind of number."""
    x = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "whole": x,
        "part": x[1:],
        "turned": x.t(),
        "half": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        "eighth": torch.tensor([0.5, 2.0]).to(torch.float8_e4m3fn),
        "one": torch.tensor(3),
        "none": torch.empty(0, 4),
    }
    checkpoint = PickledCheckpoint(pickled(tensors, tmp_path / "w.bin"))
    assert set(checkpoint.names()) == set(tensors)
    for name, wanted in tensors.items():
        assert torch.equal(checkpoint.read(name).float(), wanted.detach().float()), name
        assert (checkpoint.elem(name).torch, checkpoint.dims(name)) == (wanted.dtype, wanted.shape)
    at = checkpoint.stored("part")
    assert at is not None
    assert at.path.read_bytes()[at.offset : at.offset + at.nbytes] == x[1:].numpy().tobytes()
    assert checkpoint.stored("turned") is None
    for name in ("whole", "part", "turned"):
        blocks = list(expression_blocks(Cast(Tensor(name), checkpoint.elem(name)), checkpoint, slice(1, 2)))
        assert torch.equal(torch.cat(blocks), tensors[name][1:2])


class Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("/tmp/irloom-was-run",)


def test_a_pickle_that_wants_to_run_code_is_refused_and_nothing_runs(tmp_path):
    message = refusal(pickled({"w": torch.ones(2), "x": Runs()}, tmp_path / "w.bin"))
    assert message == (
        "PATH/w.bin: its pickle asks for `posix.mkdir`, which is no tensor\n"
        "hint: opening it would run code; use a safetensors checkpoint"
    )
    assert not Path("/tmp/irloom-was-run").exists()


def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path):
    for value in ([torch.ones(2)], {"step": 3}, {"model": {"w": torch.ones(2)}}):
        assert refusal(pickled(value, tmp_path / "w.bin")) == (
            "PATH/w.bin: is not a dictionary of tensors\nhint: is it a file of weights?"
        )


def test_a_file_of_old_torch_is_refused_with_the_way_to_write_it_anew(tmp_path):
    old = pickled({"w": torch.ones(2)}, tmp_path / "w.bin", _use_new_zipfile_serialization=False)
    assert refusal(old).startswith("PATH/w.bin: was written by torch before 1.6\nhint: torch.save(")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = pickled({"w": torch.ones(300), "v": torch.ones(7)}, tmp_path / "w.bin")
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.3, 0.6, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert refusal(path)


def test_a_tensor_that_claims_more_than_its_bytes_is_refused(tmp_path):
    """The pickle is another file's, whose storage is larger."""
    small = pickled({"w": torch.ones(4)}, tmp_path / "small.bin")
    large = pickled({"w": torch.ones(4000)}, tmp_path / "large.bin")
    made = tmp_path / "w.bin"
    with zipfile.ZipFile(large) as lie, zipfile.ZipFile(small) as truth, zipfile.ZipFile(made, "w") as out:
        for member in truth.namelist():
            source = lie if member.endswith("data.pkl") else truth
            twin = member.replace("small/", "large/") if source is lie else member
            out.writestr(member.replace("small/", "w/"), source.read(twin))
    assert refusal(made).startswith(
        "PATH/w.bin: `w` is f32[4000], more than the 16 bytes stored for it\nhint: "
    )


def test_compressed_members_are_refused(tmp_path):
    plain = pickled({"w": torch.ones(4)}, tmp_path / "plain.bin")
    made = tmp_path / "w.bin"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as out:
        for member in source.namelist():
            out.writestr(member, source.read(member))
    assert refusal(made) == "PATH/w.bin: `plain/data.pkl` in it is compressed"


def test_a_bare_pickle_is_refused(tmp_path):
    path = tmp_path / "w.bin"
    path.write_bytes(b"\x80\x04}.")
    assert refusal(path).startswith("PATH/w.bin: was written by torch before 1.6")


def test_a_directory_without_weights_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        open_raw(tmp_path)
