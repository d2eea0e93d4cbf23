"""Finding a model by its hub id, in the library's own download cache."""

from __future__ import annotations

import re
from pathlib import Path

from irloom.ir.errors import CheckpointError

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
"""What a model directory is fetched for: config, weights, tokenizer."""

CONFIGS = ["*.json"]
"""What it takes to trace a model."""

PICKLED = ["pytorch_model*.bin"]
"""Fetched only where a model has no other weights."""


def find(model: str, code: bool = False, weights: bool = True) -> Path:
    """The path ``model``, or the directory of the hub id ``org/name``, downloaded unless it is there.

    Python files are fetched only where ``code`` says so; without ``weights``, little but the config is.
    """
    path = Path(model).expanduser()
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+|[\w-]+", model):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = [*(FILES if weights else CONFIGS), *(["*.py"] if code else [])]
        found = Path(snapshot_download(model, allow_patterns=wanted))
        if weights and (found / "config.json").is_file() and not any(found.glob("*.safetensors")):
            snapshot_download(model, allow_patterns=PICKLED)
        return found
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{model}: no such path, and not found on the hub: {first}",
            hint="check the name; a private model needs HF_TOKEN",
        ) from error
