"""Checkpoints that torch alone writes: for models that Megatron-core does not run, and to be damaged."""

from __future__ import annotations

import itertools
import pickle  # noqa: TID251 (what torch writes .metadata with)
import tarfile
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save

LLAMA: dict[str, Any] = {
    "_target_": "megatron.bridge.models.gpt_provider.GPTModelProvider",
    "num_layers": 2, "hidden_size": 16, "ffn_hidden_size": 24, "num_attention_heads": 4,
    "num_query_groups": 2, "normalization": "RMSNorm", "gated_linear_unit": True,
    "activation_func": {"_target_": "torch.nn.functional.silu"}, "position_embedding_type": "rope",
    "seq_length": 32,
}  # fmt: skip


def llama_tensors() -> dict[str, torch.Tensor]:
    """The tensors of a Llama of two stacked layers, as Megatron names them."""
    dims = {
        "embedding.word_embeddings.weight": (24, 16),
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight": (2, 16),
        "decoder.layers.self_attention.linear_qkv.weight": (2, 32, 16),
        "decoder.layers.self_attention.linear_proj.weight": (2, 16, 16),
        "decoder.layers.mlp.linear_fc1.layer_norm_weight": (2, 16),
        "decoder.layers.mlp.linear_fc1.weight": (2, 48, 16),
        "decoder.layers.mlp.linear_fc2.weight": (2, 16, 24),
        "decoder.final_layernorm.weight": (16,),
        "output_layer.weight": (24, 16),
    }
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(size, generator=generator) for name, size in dims.items()}


def write_bridge(path: Path, tensors: dict[str, torch.Tensor], model: dict[str, Any]) -> Path:
    """A Megatron-Bridge checkpoint at ``path``; gives the folder of its iteration."""
    folder = path / "iter_0000001"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        save(dict(tensors), checkpoint_id=str(folder), no_dist=True)
    (path / "latest_checkpointed_iteration.txt").write_text("1")
    (folder / "run_config.yaml").write_text(yaml.safe_dump({"model": model}))
    return folder


def write_nemo1(path: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """A NeMo 1 model as a directory."""
    path.mkdir()
    state = {f"model.{name}": tensor for name, tensor in (tensors or llama_tensors()).items()}
    torch.save(state, path / "model_weights.ckpt")
    said = {k: v for k, v in LLAMA.items() if k not in ("_target_", "gated_linear_unit", "activation_func")}
    said |= {"normalization": "rmsnorm", "activation": "fast-swiglu", "encoder_seq_length": 32, "bias": False}
    (path / "model_config.yaml").write_text(yaml.safe_dump({**said, **config}))
    return path


def pack(folder: Path, archive: Path, *, mode: Any = "w:") -> Path:
    """``folder`` as an archive of NeMo 1."""
    with tarfile.open(archive, mode) as tar:
        tar.add(folder, arcname="./")
    return archive


def write_sharded(
    folder: Path, tensors: dict[str, torch.Tensor], cut: dict[str, tuple[int, ...]]
) -> Metadata:
    """A torch_dist folder, each dim of a tensor cut into as many chunks as ``cut`` says, a file for each."""
    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {}
    where: dict[Any, Any] = {}
    for key, tensor in tensors.items():
        counts = cut.get(key, (1,) * tensor.dim())
        sizes = [n // c for n, c in zip(tensor.shape, counts, strict=True)]
        chunks: list[ChunkStorageMetadata] = []
        for index in itertools.product(*map(range, counts)):
            at = torch.Size(i * n for i, n in zip(index, sizes, strict=True))
            box = tuple(slice(a, a + n) for a, n in zip(at, sizes, strict=True))
            chunks.append(ChunkStorageMetadata(at, torch.Size(sizes)))
            file = folder / f"__{len(where)}_0.distcp"
            torch.save(tensor[box].clone(), file)
            where[MetadataIndex(key, at)] = _StorageInfo(file.name, 0, file.stat().st_size)
        properties = TensorProperties.create_from_tensor(tensor)
        about[key] = TensorStorageMetadata(properties, tensor.shape, chunks)
    metadata = Metadata(about, None, where)
    write_metadata(folder, metadata)
    return metadata


def write_metadata(folder: Path, metadata: Metadata) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
