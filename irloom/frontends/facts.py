"""What serving a model needs to know of it beside its program: where it ends, and how long it may get."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irloom.ir.errors import CheckpointError

LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "block_size")
DEFAULT_CONTEXT = 2048


@dataclass(frozen=True)
class Facts:
    """``eos`` are the tokens that end an answer, ``max_context`` the tokens a sequence may have."""

    eos: tuple[int, ...]
    max_context: int


def directory_facts(path: Path) -> Facts:
    """Of a Hugging Face directory: generation_config.json where it speaks, else config.json."""
    config = read_json(path / "config.json")
    text = config.get("text_config") or config
    said = read_json(path / "generation_config.json") if (path / "generation_config.json").is_file() else {}
    eos = next((c["eos_token_id"] for c in (said, config, text) if c.get("eos_token_id") is not None), ())
    length = next((text[k] for k in LENGTHS if isinstance(text.get(k), int)), DEFAULT_CONTEXT)
    length = min(length, _original_length(text) or length)
    ends = tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
    if not all(isinstance(token, int) for token in ends):
        raise CheckpointError(
            f"{path}: eos_token_id is {eos!r}", hint="it is the id of a token, or a list of ids, as numbers"
        )
    return Facts(ends, int(length))


def _original_length(text: dict[str, Any]) -> int | None:
    """Up to where frequencies are those of short texts, where a model has others for longer ones."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else None
    if kind not in {"longrope", "su"}:
        return None
    original = rope.get("original_max_position_embeddings", text.get("original_max_position_embeddings"))
    return original if isinstance(original, int) else None


def header_facts(metadata: dict[str, Any]) -> Facts:
    """Of a GGUF file's metadata."""
    architecture = metadata.get("general.architecture", "")
    names = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    eos = [int(metadata[name]) for name in names if isinstance(metadata.get(name), int)]
    length = int(metadata.get(f"{architecture}.context_length", DEFAULT_CONTEXT))
    scaling = f"{architecture}.rope.scaling."
    if metadata.get(f"{scaling}attn_factor"):  # longrope
        length = min(length, int(metadata.get(f"{scaling}original_context_length", length)))
    return Facts(tuple(dict.fromkeys(eos)), length)


def fingerprint(path: Path) -> str:
    """A model's identity on this disk: its files' names, sizes and times of change, its configs' bytes."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        stat = file.stat()
        digest.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        if file.suffix in {".json", ".yaml"} and stat.st_size < 1 << 20:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ``CheckpointError`` where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}", hint="the file is damaged; fetch it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object", hint="the file is damaged; fetch it again")
    return value
