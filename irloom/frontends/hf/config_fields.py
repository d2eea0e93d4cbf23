"""What a config.json may not say: values for which the library works for ever, or fails far from them."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irloom.frontends.facts import read_json
from irloom.frontends.hf.tiny import LAYERS
from irloom.ir.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from irloom.ir.checkpoint import Checkpoint

MOST_LAYERS = 4096
AUTO = "auto"
"""As the element of weights: as they are stored."""
_FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def check_fields(file: Path) -> None:
    """``CheckpointError`` for a config.json with impossible layers, elements or quantization."""
    fields = read_json(file)
    parts = [fields, *(value for value in fields.values() if isinstance(value, dict))]
    for part in parts:
        for name in LAYERS:
            _check_layers(file, name, part.get(name))
        for name in ("dtype", "torch_dtype"):
            _check_dtype(file, name, part.get(name))
    stored = fields.get("quantization_config")
    if stored is not None and not isinstance(stored, dict):
        raise CheckpointError(
            f"{file}: quantization_config is {stored!r}, not an object",
            hint="the file is damaged; fetch it again",
        )


def says_auto(file: Path) -> bool:
    """Whether the element of weights is left to the weights."""
    fields = read_json(file)
    return AUTO in (fields.get("dtype"), fields.get("torch_dtype"))


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[Path]:
    """A directory that the library reads: config.json goes without the element where that is ``auto``."""
    if not says_auto(folder / "config.json"):
        yield folder
        return
    fields = read_json(folder / "config.json")
    kept = {k: v for k, v in fields.items() if k not in {"dtype", "torch_dtype"}}
    with tempfile.TemporaryDirectory() as copy:
        (Path(copy) / "config.json").write_text(json.dumps(kept), encoding="utf-8")
        yield Path(copy)


def stored_dtype(raw: Checkpoint) -> torch.dtype:
    """The element of most of a checkpoint's entries, where that is a plain float; else f32."""
    import torch

    entries: Counter[torch.dtype] = Counter()
    for name in raw.names():
        if raw.elem(name).kind == "float" and raw.elem(name).bits >= 16:
            entries[raw.elem(name).torch] += math.prod(raw.dims(name))
    return entries.most_common(1)[0][0] if entries else torch.float32


def _check_layers(file: Path, name: str, count: Any) -> None:
    if isinstance(count, int) and count > MOST_LAYERS:
        raise CheckpointError(
            f"{file}: {name} is {count}",
            hint=f"irloom builds up to {MOST_LAYERS} layers; is the file damaged?",
        )


def _check_dtype(file: Path, name: str, dtype: Any) -> None:
    if isinstance(dtype, str) and dtype.removeprefix("torch.") not in (*_FLOATS, AUTO):
        raise CheckpointError(
            f"{file}: {name} is {dtype!r}, which is no element of weights",
            hint=f"it is one of {', '.join(_FLOATS)}; without it weights are float32",
        )
