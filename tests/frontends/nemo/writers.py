"""Each format of checkpoints, written as NeMo, Megatron-Bridge and Megatron-LM write it."""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.frontends.nemo.megatron import FAMILIES, LENGTH, PADDED, VOCAB

SAID = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups",
    "kv_channels", "normalization", "gated_linear_unit", "add_bias_linear", "add_qkv_bias",
    "qk_layernorm", "layernorm_epsilon", "num_moe_experts", "moe_router_topk", "moe_ffn_hidden_size",
    "moe_router_pre_softmax", "moe_router_score_function", "moe_layer_freq",
    "moe_router_topk_scaling_factor", "moe_router_num_groups", "moe_router_group_topk",
    "moe_shared_expert_intermediate_size", "multi_latent_attention", "q_lora_rank", "kv_lora_rank",
    "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim", "rope_type", "rotary_scaling_factor",
    "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
    "window_size",
)  # fmt: skip
PATHS = {
    "silu": "torch.nn.functional.silu",
    "gelu": "torch._C._nn.gelu",
    "gelu_tanh": "nemo.collections.llm.fn.activation.openai_gelu",
    "squared_relu": "megatron.core.activations.squared_relu",
}
LAYERS_APART = {"singleton_local_shards": True, "chained_optim_avoid_prefix": True}
STACKED = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}


@dataclass(frozen=True)
class Source:
    """A model to be written: Megatron's, its config, what GPTModel was given, and its family's name."""

    name: str
    model: Any
    config: Any
    given: dict[str, Any]

    def fields(self) -> dict[str, Any]:
        """Every field that makes a difference, by Megatron's names."""
        said = {name: getattr(self.config, name) for name in SAID if hasattr(self.config, name)}
        if said.get("window_size"):
            said["window_size"] = list(said["window_size"])
        return {
            **said,
            **self.given,
            "layernorm_zero_centered_gamma": FAMILIES[self.name].zero_centered,
            "seq_length": LENGTH,
            "make_vocab_size_divisible_by": PADDED,
        }

    def activation(self) -> dict[str, Any]:
        return {"_target_": PATHS[FAMILIES[self.name].activation], "_call_": False}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state of one rank, as Transformer Engine's modules name it."""
        state = {n: t.detach().clone() for n, t in self.model.state_dict().items() if torch.is_tensor(t)}
        out = {}
        for name, tensor in state.items():
            layer = ".".join(name.split(".")[:3])
            name = name.replace(".input_layernorm.", ".self_attention.linear_qkv.layer_norm_")
            if f"{layer}.mlp.router.weight" not in state:
                name = name.replace(".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_")
            out[f"model.{name}"] = tensor
        return out


Write = Callable[[Source, Path], None]


def nemo1_config(source: Source) -> dict[str, Any]:
    recipe, config, fields = FAMILIES[source.name], source.config, source.fields()
    norm = "rmsnorm" if config.normalization == "RMSNorm" else "layernorm"
    plain = {"gelu_tanh": "openai-gelu", "squared_relu": "squared-relu"}
    gated = {"silu": "fast-swiglu", "gelu_tanh": "geglu"}
    name = recipe.activation
    kept = ("moe_router_pre_softmax", "window_size", "layernorm_epsilon")
    return {
        "mcore_gpt": True,
        "micro_batch_size": 1,
        "encoder_seq_length": LENGTH,
        "max_position_embeddings": LENGTH,
        **{k: fields[k] for k in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")},
        **{k: fields[k] for k in ("num_query_groups", "kv_channels", "num_moe_experts", "moe_router_topk")},
        **{k: fields[k] for k in kept if k in fields},
        "normalization": "layernorm1p" if norm == "layernorm" and recipe.zero_centered else norm,
        "layernorm_zero_centered_gamma": recipe.zero_centered,
        "activation": gated[name] if config.gated_linear_unit else plain.get(name, name),
        "bias": config.add_bias_linear,
        "qkv_bias": config.add_qkv_bias,
        "headscale": False,
        "transformer_block_type": "pre_ln",
        "position_embedding_type": source.given["position_embedding_type"],
        "rotary_percentage": source.given["rotary_percent"],
        "rotary_base": source.given["rotary_base"],
        "share_embeddings_and_output_weights": source.given["share_embeddings_and_output_weights"],
        "scale_positional_embedding": bool(source.given.get("rope_scaling")),
        "precision": 32,
        "tokenizer": {"library": "sentencepiece", "model": "nemo:0123abcd_tokenizer.model"},
        "target": "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel",
        "nemo_version": "1.23.0",
    }


def archived(fill: Write, mode: Any = "w:") -> Write:
    """``fill`` into an archive of NeMo 1."""

    def write(source: Source, path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder, tarfile.open(path, mode) as tar:
            fill(source, Path(folder))
            tar.add(folder, arcname="./")

    return write


def nemo1(weights: Write) -> Write:
    """The files of a NeMo 1 model, with ``weights`` as it writes them."""

    def write(source: Source, path: Path) -> None:
        path.mkdir(exist_ok=True)
        (path / "model_config.yaml").write_text(yaml.safe_dump(nemo1_config(source)))
        weights(source, path)

    return write


def one_rank(source: Source, path: Path) -> None:
    torch.save(source.tensors(), path / "model_weights.ckpt")


def two_ranks(source: Source, path: Path) -> None:
    for rank in range(2):
        (path / f"mp_rank_{rank:02d}").mkdir()
        shard = {n: _shard(source, n, t, rank) for n, t in source.tensors().items()}
        torch.save(shard, path / f"mp_rank_{rank:02d}" / "model_weights.ckpt")


def four_ranks(source: Source, path: Path) -> None:
    """Two pipeline stages of two ranks; each stage numbers its layers from 0."""
    layers = source.config.num_layers // 2
    for stage in range(2):
        here = {}
        for name, tensor in source.tensors().items():
            parts = name.split(".")
            if "layers" in parts:
                layer = int(parts[3])
                if layer // layers == stage:
                    parts[3] = str(layer % layers)
                    here[".".join(parts)] = tensor
            elif ("embedding" in name) == (stage == 0):
                here[name] = tensor
        for rank in range(2):
            folder = path / f"tp_rank_{rank:02d}_pp_rank_{stage:03d}"
            folder.mkdir()
            shard = {n: _shard(source, n, t, rank) for n, t in here.items()}
            torch.save(shard, folder / "model_weights.ckpt")


def _shard(source: Source, name: str, tensor: torch.Tensor, rank: int) -> torch.Tensor:
    """What rank ``rank`` of two holds: rows of a group's heads, halves of gates and of values, columns."""
    if "linear_fc1.weight" in name or "linear_fc1.bias" in name:
        parts = tensor.chunk(2) if source.config.gated_linear_unit else [tensor]
        return torch.cat([part.chunk(2)[rank] for part in parts]).clone()
    rows = ("word_embeddings", "output_layer", "linear_qkv.weight", "linear_qkv.bias")
    if any(part in name for part in rows):
        return tensor.chunk(2)[rank].clone()
    if "linear_proj.weight" in name or "linear_fc2.weight" in name:
        return tensor.chunk(2, dim=1)[rank].clone()
    return tensor


def old_names(source: Source, path: Path) -> None:
    """As before Megatron-core: names of their own, and gated MLPs as two products."""
    state = {}
    for name, tensor in source.tensors().items():
        name = name.replace("model.embedding.", "model.language_model.embedding.")
        name = name.replace("model.output_layer.", "model.language_model.output_layer.")
        name = name.replace("model.decoder.", "model.language_model.encoder.")
        name = name.replace(".self_attention.linear_qkv.layer_norm_", ".input_layernorm.")
        name = name.replace(".mlp.linear_fc1.layer_norm_", ".post_attention_layernorm.")
        name = name.replace(".linear_qkv.", ".query_key_value.").replace(".linear_proj.", ".dense.")
        name = name.replace(".linear_fc2.", ".dense_4h_to_h.")
        if ".linear_fc1." in name and source.config.gated_linear_unit:
            state[name.replace(".linear_fc1.", ".dense_h_to_4h.")] = tensor.chunk(2)[0].clone()
            state[name.replace(".linear_fc1.", ".dense_h_to_4h_2.")] = tensor.chunk(2)[1].clone()
        else:
            state[name.replace(".linear_fc1.", ".dense_h_to_4h.")] = tensor
    torch.save(state, path / "model_weights.ckpt")


def distributed(source: Source, path: Path, prefix: str = "", meta: Any = None, common: Any = None) -> None:
    """A torch_dist checkpoint, by Megatron's own writer."""
    from megatron.core import dist_checkpointing

    meta = meta or STACKED
    path.mkdir(parents=True, exist_ok=True)
    state = source.model.sharded_state_dict(prefix=prefix, metadata=meta)
    dist_checkpointing.save({**state, **(common or {})}, str(path), content_metadata=meta)


def zarr(source: Source, path: Path, prefix: str = "") -> None:
    """As Megatron-core wrote it until 0.15: a folder a tensor, no compressor, C order, chunks by rank."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    state = source.model.sharded_state_dict(prefix=prefix)
    apply_factories(state)

    def tensors(value: Any) -> Any:
        if isinstance(value, ShardedTensor):
            yield value
        elif isinstance(value, dict | list | tuple):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from tensors(inner)

    path.mkdir(parents=True)
    for tensor in tensors(state):
        folder = path / tensor.key
        folder.mkdir(exist_ok=True)
        chunks = [n // f for n, f in zip(tensor.global_shape, tensor.axis_fragmentations, strict=True)]
        header = {"chunks": chunks, "compressor": None, "dtype": "<f4", "fill_value": None, "filters": None}
        header |= {"order": "C", "shape": list(tensor.global_shape), "zarr_format": 2}
        (folder / ".zarray").write_text(json.dumps(header))
        index = ".".join(str(o // c) for o, c in zip(tensor.global_offset, chunks, strict=True))
        (folder / index).write_bytes(tensor.data.detach().reshape(chunks).contiguous().numpy().tobytes())
    (path / "metadata.json").write_text('{"sharded_backend": "zarr", "sharded_backend_version": 1}')
    torch.save({}, path / "common.pt")


def nemo2(source: Source, path: Path) -> None:
    context = path / "context"
    context.mkdir(parents=True)
    tokenizer(context / "nemo_tokenizer")
    distributed(source, path / "weights", "module.", common={"global_step": 1})
    place, name = "nemo.collections.llm.gpt.model.", FAMILIES[source.name].nemo2
    fields = source.fields()
    if fields.pop("rope_scaling", None):
        del fields["rope_scaling_factor"]
        fields |= {"scale_factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        fields["old_context_len"] = 8192
    if fields.get("window_size"):
        fields["window_size"] = [fields["window_size"][0] + 1, 0]
    config = {"_target_": f"{place}{name}Config", "activation_func": source.activation(), "vocab_size": None}
    model = {"_target_": f"{place}{name}Model", "config": {**fields, **config}}
    kind = "nemo.collections.common.tokenizers.huggingface.auto_tokenizer.AutoTokenizer"
    model["tokenizer"] = {"_target_": kind, "pretrained_model_name": "nemo_tokenizer"}
    (context / "model.yaml").write_text(yaml.safe_dump(model))


def nemo2_tar(source: Source, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, tarfile.open(path, "w:") as tar:
        nemo2(source, Path(folder) / "model")
        tar.add(Path(folder) / "model", arcname="model")


def nemo2_calls(source: Source, path: Path) -> None:
    """Without model.yaml: io.json, the graph of calls, in which class defaults do not stand."""
    nemo2(source, path)
    model = yaml.safe_load((path / "context" / "model.yaml").read_text())
    (path / "context" / "model.yaml").unlink()
    objects: dict[str, Any] = {}

    def leaf(value: Any) -> Any:
        return {"type": "leaf", "value": value}

    def call(key: str, target: str, arguments: dict[str, Any]) -> Any:
        module, _, name = target.rpartition(".")
        items = [[f"Attr(name='{n}')", v] for n, v in arguments.items()]
        objects[f"{key}_metadata"] = {
            "type": {"module": "fiddle", "name": "BuildableTraverserMetadata"},
            "items": [["Attr(name='fn_or_cls')", {"type": "pyref", "module": module, "name": name}]],
        }
        objects[key] = {"items": items, "metadata": {"type": "ref", "key": f"{key}_metadata"}}
        return {"type": "ref", "key": key}

    config = dict(model["config"])
    act = config.pop("activation_func")["_target_"]
    target, kept = config.pop("_target_"), {k: leaf(v) for k, v in config.items() if v is not None}
    del kept["normalization"], kept["layernorm_epsilon"], kept["position_embedding_type"]
    module, _, name = act.rpartition(".")
    kept["activation_func"] = {"type": "pyref", "module": module, "name": name}
    inner = {"config": call("config", target, kept)}
    root = call("run", "nemo.lightning.io.pl.TrainerContext", {"model": call("m", model["_target_"], inner)})
    (path / "context" / "io.json").write_text(json.dumps({"objects": objects, "root": root}))


def bridge(source: Source, path: Path, meta: Any = None, builder: bool = False) -> None:
    folder = path / "iter_0000001"
    distributed(source, folder, "", meta, {"checkpoint_version": 3.0, "iteration": 1})
    (path / "latest_checkpointed_iteration.txt").write_text("1")
    torch.save({"step": torch.tensor(1)}, folder / "train_state.pt")
    tokenizer(folder / "tokenizer")
    fields = {**source.fields(), "activation_func": source.activation()}
    kind = "megatron.bridge.models.gpt_provider.GPTModelProvider"
    model: dict[str, Any] = {**fields, "_target_": kind, "vocab_size": VOCAB, "should_pad_vocab": True}
    if builder:
        fields["activation_func"] = FAMILIES[source.name].activation
        model = {"_builder_": "megatron.bridge.models.gpt.GPTModelBuilder", "vocab_size": VOCAB}
        model["transformer"] = fields
    config = "megatron.bridge.training.tokenizers.config.TokenizerConfig"
    said = {"_target_": config, "tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "tokenizer"}
    run = {"_target_": "megatron.bridge.training.config.ConfigContainer", "model": model, "tokenizer": said}
    (folder / "run_config.yaml").write_text(yaml.safe_dump(run))


def megatron_lm(source: Source, path: Path, common_state: bool = False) -> None:
    """With the command line in common.pt; since Megatron-core 0.19 in a blob of the checkpoint instead."""
    recipe, fields = FAMILIES[source.name], source.fields()
    said = {
        **fields,
        "padded_vocab_size": PADDED,
        "swiglu": source.config.gated_linear_unit and recipe.activation == "silu",
        "squared_relu": recipe.activation == "squared_relu",
        "norm_epsilon": source.config.layernorm_epsilon,
        "apply_layernorm_1p": recipe.zero_centered,
        "group_query_attention": True,
        "untie_embeddings_and_output_weights": not source.given["share_embeddings_and_output_weights"],
        "num_experts": source.config.num_moe_experts,
        "use_rope_scaling": bool(source.given.get("rope_scaling")),
        "max_position_embeddings": LENGTH,
        "params_dtype": torch.float32,
        "bias_gelu_fusion": recipe.activation == "gelu_tanh",
    }
    common = {"checkpoint_version": 3.0, "iteration": 1, "args": argparse.Namespace(**said)}
    folder = path / "iter_0000001"
    distributed(source, folder, "", None, None if common_state else common)
    if common_state:
        (folder / "common.pt").unlink(missing_ok=True)
        _add_blob(folder, "common_state/shard_0_1", [common])
    (path / "latest_checkpointed_iteration.txt").write_text("1")


def _add_blob(folder: Path, key: str, value: Any) -> None:
    """An object among the shards, as torch's own writer puts it there."""
    import pickle  # noqa: TID251 (what torch writes .metadata with)

    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

    metadata = pickle.loads((folder / ".metadata").read_bytes())  # noqa: S301 (written a moment ago)
    data = io.BytesIO()
    torch.save(value, data)
    (folder / "__9_0.distcp").write_bytes(data.getbuffer())
    metadata.state_dict_metadata[key] = BytesStorageMetadata()
    metadata.storage_data[MetadataIndex(key)] = _StorageInfo("__9_0.distcp", 0, len(data.getbuffer()))
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(path)


FORMATS: dict[str, Write] = {
    "nemo1.nemo": archived(nemo1(one_rank)),
    "nemo1_gz.nemo": archived(nemo1(one_rank), "w:gz"),
    "nemo1_dir": nemo1(one_rank),
    "nemo1_tp2.nemo": archived(nemo1(two_ranks)),
    "nemo1_tp2_pp2.nemo": archived(nemo1(four_ranks)),
    "nemo1_old.nemo": archived(nemo1(old_names)),
    "nemo1_dist.nemo": archived(nemo1(lambda s, p: distributed(s, p / "model_weights", "model."))),
    "nemo1_zarr.nemo": archived(nemo1(lambda s, p: zarr(s, p / "model_weights", "model."))),
    "nemo2": nemo2,
    "nemo2_tar.nemo": nemo2_tar,
    "nemo2_calls": nemo2_calls,
    "bridge": bridge,
    "bridge_apart": lambda s, p: bridge(s, p, LAYERS_APART),
    "bridge_builder": lambda s, p: bridge(s, p, builder=True),
    "megatron_lm": megatron_lm,
    "megatron_common": lambda s, p: megatron_lm(s, p, common_state=True),
}
"""Formats by the name of the file or directory that each writes."""


def refused(family: str, format: str) -> str:
    """Why a family does not exist in a format; empty where it does."""
    recipe = FAMILIES[family]
    experts = "num_moe_experts" in recipe.config
    if experts and format in ("nemo1_tp2.nemo", "nemo1_tp2_pp2.nemo", "nemo1_old.nemo"):
        return "NeMo 1 saved experts of several ranks as distributed checkpoints"
    if "multi_latent_attention" in recipe.config and format.startswith("nemo1"):
        return "NeMo 1 had no latent attention"
    if "moe_shared_expert_gate" in recipe.config and format.startswith("nemo1"):
        return "NeMo 1 had no shared experts"
    if recipe.scaled_embedding and format.startswith("megatron"):
        return "Megatron-LM has no option for a scaled embedding"
    if recipe.config.get("num_query_groups") == 1 and "tp2" in format:
        return "one head of keys is not shared by two ranks"
    known = ("llama", "llama31", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "gemma", "nemotron")
    if format == "nemo2_calls" and family not in known:
        return "class defaults are known of the classes that NeMo had before 2.0.0"
    return ""
