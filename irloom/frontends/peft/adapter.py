"""An adapter directory: ``adapter_config.json`` and the pairs of small matrices that it adds to weights.

Format: https://huggingface.co/docs/peft/developer_guides/checkpoint. A setting that would change what is
added and that irloom does not know is refused, never passed over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irloom.ir.checkpoint import Checkpoint, SafetensorsCheckpoint
from irloom.ir.errors import CheckpointError

CONFIG = "adapter_config.json"
_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules",
    "target_parameters", "task_type", "use_dora", "use_rslora",
}  # fmt: skip
_STARTS = (True, False, "default", "gaussian", "eva", "orthogonal")  # inits that leave the base as it is
_HINT = "merge it with peft (`merge_and_unload`) and give the merged model"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Delta:
    """``scale * B @ A`` for the tensor ``target``; ``a`` and ``b`` are names in the adapter's file.

    ``turned`` says that the weight is stored as its transpose: an embedding, or ``fan_in_fan_out``.
    ``magnitude`` names the norms that DoRA gives the rows of the sum. Of stacked ``experts``, A is
    [experts * r, in] and B [out, r * experts].
    """

    target: str
    a: str
    b: str
    scale: float
    turned: bool
    magnitude: str | None = None
    experts: int = 1


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to a model: tensors it adds to, and tensors it puts in place of the model's."""

    path: Path
    tensors: Checkpoint
    deltas: Mapping[str, Delta]
    replaced: Mapping[str, str]


def is_adapter(path: Path) -> bool:
    """Whether ``path`` is an adapter and no whole model."""
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def read_config(path: Path) -> dict[str, Any]:
    """The settings of an adapter directory; ``CheckpointError`` for one that is not plain LoRA."""
    file = path / CONFIG
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: {error}", hint="an adapter is a directory of PEFT's") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: not a JSON object", hint="an adapter is a directory of PEFT's")
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{file}: a {config.get('peft_type')} adapter is not merged", hint=_HINT)
    strange = sorted(k for k, v in config.items() if v and k not in _HARMLESS)
    if config.get("bias", "none") != "none":
        strange.append("bias")
    if config.get("init_lora_weights", True) not in _STARTS:
        strange.append("init_lora_weights")
    if strange:
        shown = ", ".join(f"`{k}` {config[k]!r}" for k in strange if k != "megatron_core")
        raise CheckpointError(f"{file}: {shown} is not merged", hint=_HINT)
    return config


def read_adapter(path: Path) -> Adapter:
    """The adapter in directory ``path``, its shapes and names checked among themselves."""
    config, tensors = read_config(path), _open(path)
    pairs: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for name in tensors.names():
        place = name.removeprefix(_PREFIX)
        found = re.fullmatch(r"(.+)\.lora_(embedding_)?(A|B|magnitude_vector)(\.weight)?", place)
        if found and (found[3] in "AB" or config.get("use_dora")):
            kind = f"{found[2] or ''}{found[3]}"
            pairs.setdefault(_target(config, found[1]), {})[kind] = name
        elif "lora_" in place:
            raise CheckpointError(f"{path}: `{name}` is no part of plain LoRA", hint=_HINT)
        else:
            replaced[re.sub(r"\.(modules_to_save|base_layer)(\.default)?\.", ".", place)] = name
    deltas = [_delta(path, config, tensors, target, names) for target, names in pairs.items()]
    return Adapter(path, tensors, {delta.target: delta for delta in deltas}, replaced)


def _target(config: dict[str, Any], place: str) -> str:
    """The tensor that a pair at ``place`` is for: a module's weight, or one of its parameters.

    Several parameters of a module are wrapped one around the other, the module's first the innermost.
    """
    module, depth = place.replace(".base_layer", ""), place.count(".base_layer")
    targets = [str(t).rpartition(".") for t in config.get("target_parameters") or ()]
    leaves = {leaf for owner, _, leaf in targets if f".{module}".endswith(f".{owner}")}
    ordered = sorted(leaves, key=lambda leaf: ("gate" not in leaf, leaf))
    return f"{module}.{ordered[-1 - depth]}" if depth < len(ordered) else f"{module}.weight"


def _open(path: Path) -> Checkpoint:
    if not (path / "adapter_model.safetensors").is_file() and (path / "adapter_model.bin").is_file():
        from irloom.frontends.hf.pickled import PickledCheckpoint

        return PickledCheckpoint(path / "adapter_model.bin")
    return SafetensorsCheckpoint(path / "adapter_model.safetensors")


def _delta(
    path: Path, config: dict[str, Any], tensors: Checkpoint, target: str, names: dict[str, str]
) -> Delta:
    """The one change of ``target``, from its two matrices A [r, in] and B [out, r]."""
    module = target.removesuffix(".weight")
    embedding = "embedding_" if "embedding_A" in names or "embedding_B" in names else ""
    a, b = names.get(f"{embedding}A"), names.get(f"{embedding}B")
    magnitude = names.get("magnitude_vector")
    if a is None or b is None or len(names) > 2 + bool(magnitude) or (embedding and magnitude):
        raise CheckpointError(f"{path}: `{module}` has {', '.join(names)}, not one A and one B")
    rank = _setting(path, config, "rank_pattern", module, "r")
    (rows, columns) = tensors.dims(a), tensors.dims(b)
    experts = 1
    if module == target and len(rows) == 2 and isinstance(rank, int) and not rows[0] % rank:
        experts, rank = int(rows[0] // rank), rows[0]
    if len(rows) != 2 or len(columns) != 2 or rows[0] != rank or columns[1] != rank:
        raise CheckpointError(
            f"{path}: `{module}` has A {list(rows)} and B {list(columns)}, but its rank is {rank}",
            hint="the file is damaged, or adapter_config.json is that of another adapter",
        )
    alpha = _setting(path, config, "alpha_pattern", module, "lora_alpha")
    each = rank / experts
    scale = alpha / (math.sqrt(each) if config.get("use_rslora") else each)
    turned = bool(embedding or config.get("fan_in_fan_out"))
    if magnitude and (turned or tensors.dims(magnitude) != (columns[0],)):
        raise CheckpointError(f"{path}: `{magnitude}` is not one norm a row of its weight", hint=_HINT)
    return Delta(target, a, b, scale, turned, magnitude, experts)


def _setting(path: Path, config: dict[str, Any], pattern: str, module: str, default: str) -> float:
    """A number that may differ by module; patterns are matched as PEFT does, from the end of the path."""
    keys: dict[str, float] = config.get(pattern) or {}
    matched = next((k for k in keys if re.match(rf"(.*\.)?({k})$", module)), None)
    value = config.get(default) if matched is None else keys[matched]
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise CheckpointError(
            f"{path / CONFIG}: `{default}` of `{module}` is {value!r}, not a positive number"
        )
    return value
