"""Checkpoints that are incomplete, or whose parts disagree: the error names the part, nothing is guessed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.distributed.checkpoint.metadata import MetadataIndex

import irloom
from irloom.frontends.nemo import open_path
from irloom.ir.errors import CheckpointError
from tests.frontends.nemo.parity import library_model
from tests.frontends.nemo.plain import (
    LLAMA,
    llama_tensors,
    write_bridge,
    write_metadata,
    write_nemo1,
    write_sharded,
)

QKV = "decoder.layers.self_attention.linear_qkv.weight"
UP = "decoder.layers.mlp.linear_fc1.weight"


def refusal(path: Path, *, reads: bool = False) -> str:
    """The error of opening ``path``, or of reading its weights, which must have a hint."""
    with pytest.raises(CheckpointError) as caught:
        library_model(path) if reads else open_path(path).config()
    assert caught.value.hint, caught.value
    return str(caught.value)


@pytest.fixture
def sharded(tmp_path) -> tuple[Path, Any]:
    """A Bridge checkpoint with two tensors in four chunks, and its metadata."""
    folder = write_bridge(tmp_path, llama_tensors(), LLAMA)
    return folder, write_sharded(folder, llama_tensors(), {QKV: (2, 2, 1), UP: (1, 2, 2)})


def test_chunks_of_several_files_are_one_tensor(sharded):
    folder, _ = sharded
    stored, wanted = open_path(folder.parent).contents.stored, llama_tensors()
    assert len(stored[QKV].pieces) == len(stored[UP].pieces) == 4
    for key, tensor in wanted.items():
        assert torch.equal(stored[key].read(), tensor)
        assert torch.equal(stored[key].row(1).read(), tensor[1])


def test_a_missing_shard_is_named(sharded):
    folder, metadata = sharded
    info = metadata.storage_data[MetadataIndex(QKV, torch.Size((1, 16, 0)))]
    (folder / info.relative_path).unlink()
    assert f"the shard `iter_0000001/{info.relative_path}` is missing, which holds `{QKV}`" in refusal(
        folder.parent
    )


def test_a_shard_that_ends_early_is_named(sharded):
    folder, metadata = sharded
    file = folder / metadata.storage_data[MetadataIndex(UP, torch.Size((0, 0, 0)))].relative_path
    file.write_bytes(file.read_bytes()[:-100])
    assert f"`{UP}` ends at byte" in refusal(folder.parent)


def _gap(about: Any, where: Any) -> None:
    about.chunks.pop()


def _twice(about: Any, where: Any) -> None:
    about.chunks[1] = about.chunks[0]


def _past(about: Any, where: Any) -> None:
    about.chunks[3].sizes = torch.Size((1, 17, 16))


def _nowhere(about: Any, where: Any) -> None:
    del where[MetadataIndex(QKV, torch.Size((1, 16, 0)))]


def _outside(about: Any, where: Any) -> None:
    where[MetadataIndex(QKV, torch.Size((1, 16, 0)))].relative_path = "../../evil.distcp"


def _far(about: Any, where: Any) -> None:
    where[MetadataIndex(QKV, torch.Size((1, 16, 0)))].offset = 1 << 50


def _negative(about: Any, where: Any) -> None:
    where[MetadataIndex(QKV, torch.Size((1, 16, 0)))].offset = -8


def _compressed(about: Any, where: Any) -> None:
    where[MetadataIndex(QKV, torch.Size((1, 16, 0)))].transform_descriptors = ["zstd"]


def _sizeless(about: Any, where: Any) -> None:
    about.size = "large"


def _huge(about: Any, where: Any) -> None:
    about.size = torch.Size((1 << 40, 1 << 20, 16))


@pytest.mark.parametrize(
    ("lie", "word"),
    [
        (_gap, "leave a part of it out"),
        (_twice, "overlap"),
        (_past, "reach past its end"),
        (_nowhere, "says not where the chunk"),
        (_outside, "leads out of the archive"),
        (_far, "ends at byte"),
        (_negative, "ends at byte"),
        (_compressed, "stored compressed"),
        (_sizeless, "gives no dims"),
        (_huge, "leave a part of it out"),
    ],
)
def test_metadata_that_lies_is_refused(sharded, lie: Callable[[Any, Any], None], word):
    folder, metadata = sharded
    lie(metadata.state_dict_metadata[QKV], metadata.storage_data)
    write_metadata(folder, metadata)
    assert word in refusal(folder.parent)


@pytest.mark.parametrize("other", [torch.zeros(1, 16, 17), torch.zeros(1, 16, 16, dtype=torch.bfloat16), 3])
def test_a_chunk_that_is_not_what_the_metadata_says_is_refused_when_it_is_read(sharded, other):
    folder, metadata = sharded
    info = metadata.storage_data[MetadataIndex(QKV, torch.Size((1, 16, 0)))]
    torch.save(other, folder / info.relative_path)
    info.length = (folder / info.relative_path).stat().st_size
    write_metadata(folder, metadata)
    assert f"a chunk of `{QKV}` is" in refusal(folder.parent, reads=True)


def test_what_fails_while_weights_are_read_leaves_no_engine(sharded, tmp_path):
    folder, metadata = sharded
    info = metadata.storage_data[MetadataIndex(QKV, torch.Size((1, 16, 0)))]
    (folder / info.relative_path).write_bytes(bytes(info.length))
    with pytest.raises(CheckpointError, match=r"holds no readable torch\.save file"):
        irloom.compile(folder.parent, "reference", out=tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("key", list(llama_tensors()))
def test_a_tensor_that_is_missing_is_missed(key, tmp_path):
    tensors = llama_tensors()
    del tensors[key]
    write_bridge(tmp_path, tensors, LLAMA)
    if key == "output_layer.weight":
        assert open_path(tmp_path).config().tie_word_embeddings
    else:
        refusal(tmp_path, reads=True)


@pytest.mark.parametrize(
    "key", ["decoder.layers.self_attention.linear_qkv.lora", "decoder.memory.weight", "adapter.weight"]
)
def test_a_tensor_that_no_rule_is_for_is_named(key, tmp_path):
    write_bridge(tmp_path, {**llama_tensors(), key: torch.zeros(2, 4)}, LLAMA)
    opened = open_path(tmp_path)
    with pytest.raises(CheckpointError, match="it is not known what") as caught:
        opened.weights()
    assert key.rpartition(".")[2] in caught.value.message


def test_state_of_training_is_passed_over(tmp_path):
    more = {
        "optimizer.state.exp_avg.decoder.layers.mlp.linear_fc1.weight": torch.zeros(2, 48, 16),
        "rerun_state_machine_state.x": torch.zeros(1),
        "decoder.layers.mlp.linear_fc1._extra_state": torch.zeros(2, 1),
        "mtp.layers.0.eh_proj.weight": torch.zeros(16, 32),
    }
    write_bridge(tmp_path, {**llama_tensors(), **more}, LLAMA)
    assert len(open_path(tmp_path).weights().names()) == 3 + 2 * 9


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("num_attention_heads", 5, "not those of 5 heads"),
        ("num_query_groups", 3, "not those of 4 heads in 3 groups"),
        ("kv_channels", 8, "not those of 4 heads in 2 groups of 8"),
        ("num_attention_heads", None, "does not say `num_attention_heads`"),
        ("num_attention_heads", "many", "`num_attention_heads` is many"),
        ("num_attention_heads", -4, "`num_attention_heads` is -4"),
        ("layernorm_epsilon", float("nan"), "`layernorm_epsilon` is nan"),
        ("normalization", "BatchNorm", "`normalization` is BatchNorm"),
        ("position_embedding_type", "alibi", "`position_embedding_type` is alibi"),
        ("rotary_interleaved", True, "`rotary_interleaved` is True"),
        ("softmax_type", "learnable", "`softmax_type` is learnable"),
        ("no_rope_freq", [0, 1], "`no_rope_freq` is list"),
        ("apply_residual_connection_post_layernorm", True, "does not read models with this option"),
        ("window_size", "wide", "`window_size` is not a number of tokens"),
        ("attn_logit_softcapping", 50.0, "a softcap"),
        ("softmax_scale", 3.0, "an attention scale of its own"),
        ("normalization", "LayerNorm", "norms without bias"),
    ],
)
def test_a_config_that_is_not_that_of_the_tensors_is_refused(field, value, word, tmp_path):
    write_bridge(tmp_path, llama_tensors(), {**LLAMA, field: value})
    assert word in refusal(tmp_path)


def test_a_model_without_a_family_says_what_it_is_and_is_not(tmp_path):
    write_bridge(tmp_path, llama_tensors(), {**LLAMA, "position_embedding_type": "none"})
    text = refusal(tmp_path)
    assert "RMSNorm, silu gated, none positions" in text
    assert "llama: none positions" in text


def test_the_iteration_that_the_tracker_names_must_be_there(tmp_path):
    write_bridge(tmp_path, llama_tensors(), LLAMA)
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    for said in ("2", "release", "../iter_0000001", "9" * 5000):
        tracker.write_text(said)
        assert "but there are iter_0000001" in refusal(tmp_path)
    tracker.unlink()
    assert open_path(tmp_path).contents.kind == "bridge"


def test_one_iteration_can_be_given_by_itself(tmp_path):
    folder = write_bridge(tmp_path, llama_tensors(), LLAMA)
    assert open_path(folder).contents.home == ""
    assert irloom.trace(folder).model == "iter_0000001"


def test_an_unknown_backend_is_named(tmp_path):
    folder = write_bridge(tmp_path, llama_tensors(), LLAMA)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "fsdp_dtensor"}))
    assert "fsdp_dtensor" in refusal(tmp_path)


def test_the_old_format_of_megatron_is_named(tmp_path):
    folder = tmp_path / "iter_0000001" / "mp_rank_00"
    folder.mkdir(parents=True)
    (folder / "model_optim_rng.pt").write_bytes(b"x")
    assert "Megatron-LM's old format" in refusal(tmp_path)


def test_without_a_config_there_is_no_model(tmp_path):
    folder = write_bridge(tmp_path, llama_tensors(), LLAMA)
    (folder / "run_config.yaml").unlink()
    assert "put the run_config.yaml of the run beside .metadata" in refusal(tmp_path)


def write_zarr(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    for key, tensor in tensors.items():
        (folder / key).mkdir(parents=True)
        header = {"shape": list(tensor.shape), "chunks": [1, *tensor.shape[1:]], "dtype": "<f4", "order": "C"}
        (folder / key / ".zarray").write_text(json.dumps({**header, "compressor": None, "filters": None}))
        for i, row in enumerate(tensor):
            name = ".".join([str(i), *["0"] * (tensor.dim() - 1)])
            (folder / key / name).write_bytes(row.contiguous().numpy().tobytes())
    (folder / "metadata.json").write_text('{"sharded_backend": "zarr"}')


@pytest.fixture
def zarr(tmp_path) -> Path:
    path = write_nemo1(tmp_path / "model")
    (path / "model_weights.ckpt").unlink()
    write_zarr(path / "model_weights", {f"model.{k}": t for k, t in llama_tensors().items()})
    return path


def test_zarr_reads_back(zarr):
    stored = open_path(zarr).contents.stored
    assert all(torch.equal(stored[f"model.{key}"].read(), t) for key, t in llama_tensors().items())


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("compressor", {"id": "blosc"}, "is compressed"),
        ("order", "F", "not in C order"),
        ("dtype", "<c8", "its dtype '<c8'"),
        ("dtype", [["a", "<f4"]], "its dtype"),
        ("chunks", [1, 7, 16], "do not divide"),
        ("chunks", [0, 32, 16], "do not divide"),
        ("chunks", [1], "do not divide"),
        ("shape", [1 << 40, 32, 16], "claims"),
        ("shape", [3, 32, 16], "is missing"),
        ("shape", "large", "does not say shape"),
        ("shape", [-2, 32, 16], "do not divide"),
    ],
)
def test_zarr_that_lies_is_refused(zarr, field, value, word):
    header = zarr / "model_weights" / f"model.{QKV}" / ".zarray"
    header.write_text(json.dumps({**json.loads(header.read_text()), field: value}))
    assert word in refusal(zarr)


def test_a_zarr_chunk_that_is_missing_or_short_is_named(zarr):
    chunk = zarr / "model_weights" / f"model.{QKV}" / "1.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-4])
    assert "its chunk [1, 0, 0] has 2044 bytes, not 2048" in refusal(zarr)
    chunk.unlink()
    assert f"model.{QKV}/1.0.0` is missing" in refusal(zarr)


def test_a_missing_rank_is_named(tmp_path):
    path = write_nemo1(tmp_path / "model")
    (path / "mp_rank_01").mkdir()
    shutil.move(path / "model_weights.ckpt", path / "mp_rank_01" / "model_weights.ckpt")
    assert "tensor-parallel rank 0 of stage 0 are missing" in refusal(path)


def test_a_layer_that_is_missing_is_named(tmp_path):
    tensors = {"embedding.word_embeddings.weight": torch.zeros(4, 16)}
    tensors |= {f"decoder.layers.{i}.input_layernorm.weight": torch.zeros(16) for i in (0, 3)}
    path = write_nemo1(tmp_path / "model", tensors)
    assert "nothing in it for layer 1 of 4" in refusal(path)


def test_a_config_may_not_be_resolved(tmp_path):
    path = write_nemo1(tmp_path / "model", ffn_hidden_size="${multiply:4,${.hidden_size}}")
    assert open_path(path).config().intermediate_size == 24
    document = yaml.safe_load((path / "model_config.yaml").read_text())
    document["num_attention_heads"] = "${heads}"
    (path / "model_config.yaml").write_text(yaml.safe_dump(document))
    assert "`num_attention_heads` is ${heads}" in refusal(path)
