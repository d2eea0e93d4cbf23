"""One set of names for every layout in which Megatron stores a decoder.

Layers are stacked along a first dim or numbered; so are experts. Norms are named by themselves or fused into
the product that follows them. Halves of gated MLPs and the parts of recurrent layers' inputs are apart or
together. Here all become: one tensor per layer and expert, norms by their own names, parts joined:

    embedding.word_embeddings.weight
    decoder.layers.{i}.input_layernorm.{weight,bias}
    decoder.layers.{i}.self_attention.{linear_qkv,linear_proj}.{weight,bias}
    decoder.layers.{i}.pre_mlp_layernorm.{weight,bias}
    decoder.layers.{i}.mlp.{linear_fc1,linear_fc2}.{weight,bias}
    decoder.layers.{i}.mlp.experts.{e}.{linear_fc1,linear_fc2}.weight
    decoder.final_layernorm.{weight,bias}, output_layer.weight
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from irloom.frontends.nemo.laid import Laid, joined
from irloom.ir.errors import CheckpointError
from irloom.ir.safetensors import natural

_SKIPPED = re.compile(
    r"^(optimizer|chained_|rng_state|rerun|common_state|opt_param_scheduler|train_state)|_extra_state"
    r"|rotary_pos_emb|\.core_attention\._"
)
"""Training state, fp8 histories, and rotary frequencies, which the config gives."""

_MTP = re.compile(r"^((model|module)\.)*mtp\.")
_FUSED = (
    (".self_attention.linear_qkv.layer_norm_", ".input_layernorm."),
    (".self_attention.in_proj.layer_norm_", ".input_layernorm."),
    (".self_attention.linear_q_up_proj.layer_norm_", ".self_attention.q_layernorm."),
    (".self_attention.linear_kv_up_proj.layer_norm_", ".self_attention.kv_layernorm."),
    (".self_attention.linear_proj.post_layernorm.", ".post_self_attn_layernorm."),
    (".mlp.linear_fc1.layer_norm_", ".pre_mlp_layernorm."),
    (".mlp.linear_fc2.post_layernorm.", ".post_mlp_layernorm."),
    (".mixer.in_proj.layer_norm_", ".norm."),
    ("decoder.final_norm.", "decoder.final_layernorm."),
    (".mlp.experts.experts.", ".mlp.experts."),
    (".mlp.experts.local_experts.", ".mlp.experts."),
)
_NUMBERED = re.compile(r"(\.mlp\.experts)\.(linear_fc[12])\.(weight|bias)(\d+)$")
_STACKED = re.compile(r"(?<=^decoder\.layers)\.(?!\d+\.)")
_EXPERTS = re.compile(r"(?<=\.mlp\.experts)\.(?=linear_fc[12]\.(weight|bias)(_[wv])?$)")
_PARTS = (
    (re.compile(r"\.linear_fc1\.(weight|bias)$"), ("_w", "_v")),
    (re.compile(r"\.mixer\.in_proj\.weight$"), (".z", ".x", ".B", ".C", ".dt")),
    (re.compile(r"\.mixer\.conv1d\.(weight|bias)$"), (".x", ".B", ".C")),
    (
        re.compile(r"\.self_attention\.in_proj\.weight$"),
        (".query", ".key", ".value", ".z", ".beta", ".alpha"),
    ),
    (re.compile(r"\.self_attention\.conv1d\.(weight|bias)$"), (".query", ".key", ".value")),
)
"""Tensors that are stored in parts: what they are called, and what each part adds to the name, in order."""


def wanted(key: str) -> bool:
    """Whether a key of a checkpoint is a weight. Heads that predict further tokens are for training."""
    return not _SKIPPED.search(key) and not _MTP.match(key)


def canonical(stored: dict[str, Laid], path: Path) -> dict[str, Laid]:
    """The tensors of a checkpoint by their names of above, in the order of the layers."""
    found: dict[str, Laid] = {}
    for key, tensor in stored.items():
        if not wanted(key):
            continue
        for name, part in _unstacked(_renamed(key), tensor):
            if name in found:
                raise CheckpointError(
                    f"{path}: `{name}` is in it twice, once as `{key}`",
                    hint="files of two checkpoints are mixed",
                )
            found[name] = part
    whole = _joined(found)
    _check_layers(whole, path)
    return {name: whole[name] for name in sorted(whole, key=natural)}


def _renamed(key: str) -> str:
    name = re.sub(r"^(model\.|module\.)+", "", key)
    for fused, plain in _FUSED:
        name = name.replace(fused, plain)
    return _NUMBERED.sub(r"\1.\4.\2.\3", name)


def _unstacked(name: str, tensor: Laid) -> Iterator[tuple[str, Laid]]:
    for pattern in (_STACKED, _EXPERTS):
        if pattern.search(name) and tensor.dims:
            for i in range(tensor.dims[0]):
                yield from _unstacked(pattern.sub(f".{i}.", name, count=1), tensor.row(i))
            return
    yield name, tensor


def _joined(found: dict[str, Laid]) -> dict[str, Laid]:
    """Parts of one tensor together; what is already together stays."""
    out = dict(found)
    for name in found:
        for pattern, parts in _PARTS:
            stem = name.removesuffix(parts[0])
            if stem != name and pattern.search(stem) and all(stem + part in out for part in parts):
                out[stem] = joined([out.pop(stem + part) for part in parts])
    for name in [n for n in out if ".dense_h_to_4h_2." in n]:
        gate = name.replace(".dense_h_to_4h_2.", ".linear_fc1.")
        if gate in out:
            out[gate] = joined([out[gate], out.pop(name)])
    return out


def _check_layers(found: dict[str, Laid], path: Path) -> None:
    if any(re.match(r"model\d+\.", name) for name in found):
        raise CheckpointError(
            f"{path}: its layers are in the order of an interleaved pipeline",
            hint="merge the ranks with NeMo's change_tensor_parallel script (pipeline_model_parallel_size=1)",
        )
    numbers = {int(m[1]) for name in found if (m := re.match(r"decoder\.layers\.(\d+)\.", name))}
    if not numbers:
        raise CheckpointError(
            f"{path}: holds no decoder layers of Megatron",
            hint="irloom reads language models; speech, vision and embedding models it does not",
        )
    if absent := [i for i in range(max(numbers)) if i not in numbers]:
        raise CheckpointError(
            f"{path}: nothing in it for layer {absent[0]} of {max(numbers) + 1}",
            hint="fetch every file of the checkpoint",
        )
