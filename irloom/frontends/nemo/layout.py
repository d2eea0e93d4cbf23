"""Which of NeMo's and Megatron's formats a path is, by its files; and what it says of its model.

NeMo 1: ``model_config.yaml`` and the weights as rank files or a distributed checkpoint. NeMo 2: ``context/``
and ``weights/``. Megatron-Bridge: ``iter_*/`` with ``run_config.yaml``. Megatron-LM: the same without, its
command line in the common state.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from irloom.frontends.nemo.archive import Files
from irloom.frontends.nemo.canonical import wanted
from irloom.frontends.nemo.distributed import Distributed
from irloom.frontends.nemo.documents import read_fiddle, read_json, read_yaml
from irloom.frontends.nemo.fields import (
    Fields,
    bridge_fields,
    megatron_fields,
    nemo1_fields,
    nemo2_fields,
)
from irloom.frontends.nemo.laid import Laid
from irloom.frontends.nemo.nemo2 import with_defaults
from irloom.frontends.nemo.ranks import FILE, read_ranks
from irloom.frontends.nemo.savefile import read_saved
from irloom.frontends.nemo.unpickle import Inert
from irloom.frontends.nemo.zarr import Zarr
from irloom.ir.errors import CheckpointError

TRACKER = "latest_checkpointed_iteration.txt"
ITERATION = re.compile(r"(iter_\d+|release)")


@dataclass(frozen=True)
class Contents:
    """A checkpoint of ``kind`` (nemo1, nemo2, bridge, megatron) before its names are understood.

    ``tokenizer`` is what the config says of it, ``home`` the folder that its files are named from.
    """

    kind: str
    fields: Fields
    stored: dict[str, Laid]
    tokenizer: Fields
    home: str


def read_contents(files: Files) -> Contents:
    """Config and tensors of a checkpoint; ``CheckpointError`` for files that are no known format."""
    if "model_config.yaml" in files:
        return _nemo1(files)
    if files.names("context"):
        return _nemo2(files)
    return _megatron(files)


def looks_like_one(files: set[str]) -> bool:
    """Whether these names at a directory's top are those of one of the formats."""
    if "config.json" in files:
        return False
    return bool(
        files & {"model_config.yaml", TRACKER, "run_config.yaml"}
        or {"context", "weights"} <= files
        or (".metadata" in files and files & {"metadata.json", "common.pt"})
        or any(ITERATION.fullmatch(name) for name in files)
    )


def _nemo1(files: Files) -> Contents:
    document = read_yaml(files.text("model_config.yaml"), files.path, "model_config.yaml")
    fields = nemo1_fields(document, files.path)
    if any(FILE.fullmatch(name) for name in files.names()):
        stored = read_ranks(files)
    elif files.names("model_weights"):
        stored = _weights(files, "model_weights")
    else:
        raise CheckpointError(f"{files.path}: no model_weights.ckpt and no model_weights/", hint=_FORMATS)
    tokenizer = document.get("tokenizer", fields.get("tokenizer"))
    said = {k: v.removeprefix("nemo:") if isinstance(v, str) else v for k, v in _mapping(tokenizer).items()}
    return Contents("nemo1", fields, stored, said, "")


def _nemo2(files: Files) -> Contents:
    if "context/model.yaml" in files:
        model = read_yaml(files.text("context/model.yaml"), files.path, "context/model.yaml")
    elif "context/io.json" in files:
        run = read_fiddle(files.text("context/io.json"), files.path, "context/io.json")
        model = with_defaults(_mapping(run.get("model", run)))
    else:
        raise CheckpointError(f"{files.path}: context has neither model.yaml nor io.json", hint=_FORMATS)
    fields = nemo2_fields(model, files.path)
    return Contents("nemo2", fields, _weights(files, "weights"), _mapping(model.get("tokenizer")), "context")


def _megatron(files: Files) -> Contents:
    folder = _iteration(files)
    name = f"{folder}/run_config.yaml" if folder else "run_config.yaml"
    if name in files:
        run = read_yaml(files.text(name), files.path, name)
        fields = bridge_fields(_mapping(run.get("model")), files.path)
        stored, tokenizer = _weights(files, folder), _mapping(run.get("tokenizer"))
        return Contents("bridge", fields, stored, tokenizer, folder)
    arguments = _arguments(files, folder)
    names = ("tokenizer_type", "tokenizer_model", "vocab_file", "merge_file")
    tokenizer = {k: arguments[k] for k in names if arguments.get(k)}
    fields = megatron_fields(arguments, files.path)
    return Contents("megatron", fields, _weights(files, folder), tokenizer, folder)


def _iteration(files: Files) -> str:
    """The folder of the iteration that counts: the one that the tracker names, else the last."""
    found = sorted({name.partition("/")[0] for name in files.names() if "/" in name})
    found = [name for name in found if ITERATION.fullmatch(name)]
    if ".metadata" in files or not found:
        return ""
    if TRACKER not in files:
        return found[-1]
    said = files.text(TRACKER).strip()
    name = f"iter_{int(said):07d}" if said.isascii() and said.isdigit() and len(said) < 12 else said
    if name not in found:
        raise CheckpointError(
            f"{files.path}: {TRACKER} names {said[:40]!r}, but there are {', '.join(found[:6])}",
            hint="fetch that iteration, or write in it the one that is there",
        )
    return name


def _weights(files: Files, folder: str) -> dict[str, Laid]:
    """The tensors of a distributed checkpoint."""
    at = f"{folder}/" if folder else ""
    backend = "torch_dist"
    if f"{at}metadata.json" in files:
        said = read_json(files.text(f"{at}metadata.json"), files.path, f"{at}metadata.json")
        backend = said.get("sharded_backend", backend)
    if backend == "zarr":
        return Zarr(files, folder).tensors(wanted)
    if backend != "torch_dist":
        raise CheckpointError(
            f"{files.path}: its weights are stored as {str(backend)[:40]!r}",
            hint="irloom reads torch_dist and zarr; save the checkpoint again as torch_dist",
        )
    if f"{at}.metadata" not in files:
        raise CheckpointError(f"{files.path}: no {at}.metadata{_legacy(files)}", hint=_FORMATS)
    return Distributed(files, folder).tensors(wanted)


def _arguments(files: Files, folder: str) -> Fields:
    """The command line of a Megatron-LM run, in the state that all ranks have in common."""
    at = f"{folder}/" if folder else ""
    if f"{at}common.pt" in files:
        common = read_saved(files.extent(f"{at}common.pt"))
    elif f"{at}.metadata" in files:
        common = Distributed(files, folder).object("common_state")  # Megatron-core 0.19 and later
    else:
        raise CheckpointError(f"{files.path}: no format of NeMo or Megatron{_legacy(files)}", hint=_FORMATS)
    arguments = common.get("args") if isinstance(common, dict) else None
    if not isinstance(arguments, Inert) or not arguments.said:
        raise CheckpointError(
            f"{files.path}: neither run_config.yaml nor the arguments of a Megatron-LM run",
            hint="the config is missing: put the run_config.yaml of the run beside .metadata",
        )
    return arguments.said


def _legacy(files: Files) -> str:
    old = next((n for n in files.names() if n.endswith("model_optim_rng.pt")), None)
    return f" (`{old}` is of Megatron-LM's old format)" if old else ""


_FORMATS = "irloom reads .nemo archives, NeMo 2 directories, and torch_dist checkpoints of Megatron"


def _mapping(value: Any) -> Fields:
    return value if isinstance(value, dict) else {}
