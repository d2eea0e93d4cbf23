"""The tokenizer in a checkpoint, as a directory that the library reads.

NeMo keeps a SentencePiece model, the vocabulary and merges of GPT-2, or a Hugging Face tokenizer's files; the
latter may be named by a hub id only. What is there is copied out under the library's names, loaded once, and
kept in the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from irloom.frontends.nemo.archive import Extent
from irloom.frontends.nemo.checkpoint import Opened
from irloom.frontends.store import cache_dir
from irloom.ir.errors import CheckpointError

_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
_WHOLE = ("tokenizer.json", "vocab.json", "tokenizer.model")
"""Files of which one must be there for the others to be a tokenizer."""


def tokenizer_files(opened: Opened) -> Path:
    """A directory with tokenizer.json and its config, made on the first call and found in the cache later.

    Written beside its place and renamed, so that a directory that is there is whole.
    """
    found = _found(opened)
    if not found:
        raise _none(opened)
    place = cache_dir() / f"tokenizer-{_key(found)}"
    if not (place / "tokenizer.json").is_file():
        cache_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".tokenizer-") as folder:
            raw, made = Path(folder) / "raw", Path(folder) / "made"
            raw.mkdir()
            for name, extent in found.items():
                (raw / name).write_bytes(extent.read())
            _describe(raw, opened)
            _convert(raw, made, opened)
            try:
                made.rename(place)
            except OSError:
                if not (place / "tokenizer.json").is_file():  # else another process was first
                    raise
    return place


def end_tokens(opened: Opened) -> tuple[int, ...]:
    """The tokens that end an answer, as far as the tokenizer says; none where there is no tokenizer."""
    from irloom.frontends.hf.checkpoint import load_tokenizer

    try:
        found = load_tokenizer(tokenizer_files(opened)).eos_token_id
    except CheckpointError:
        return ()
    return () if found is None else (int(found),)


def _found(opened: Opened) -> dict[str, Extent]:
    """The tokenizer's files by the library's names for them."""
    files, said, home = opened.files, opened.contents.tokenizer, opened.contents.home
    below = files.names(home)
    folders = sorted(
        {name.rpartition("/")[0] for name in below if name.rpartition("/")[2] in _WHOLE}, key=len
    )
    for folder in folders:
        at = "/".join(part for part in (home, folder) if part)
        return {name: files.extent(f"{at}/{name}") for name in _FILES if f"{at}/{name}" in files}
    named = {
        "tokenizer.model": ("model", "model_path", "tokenizer_model"),
        "vocab.json": ("vocab_file",),
        "merges.txt": ("merge_file", "merges_file"),
    }
    found: dict[str, Extent] = {}
    for name, keys in named.items():
        wanted = [Path(str(said[key])).name for key in keys if isinstance(said.get(key), str)]
        held = [n for n in below if n.rpartition("/")[2] in wanted and n.rpartition("/")[2]]
        if held:
            found[name] = files.extent("/".join(part for part in (home, held[0]) if part))
    if "vocab.json" in found and "merges.txt" not in found:
        return {}
    return found


def _describe(raw: Path, opened: Opened) -> None:
    """Say which of the library's classes reads the files, where they do not say it themselves."""
    if (raw / "tokenizer_config.json").exists() or (raw / "tokenizer.json").exists():
        return
    kinds = {"gemma": "GemmaTokenizer", "gemma2": "GemmaTokenizer"}
    kind = kinds.get(opened.family.model_type, "LlamaTokenizer")
    if (raw / "vocab.json").exists():
        kind = "GPT2Tokenizer"
    (raw / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}), encoding="utf-8")


def _convert(raw: Path, made: Path, opened: Opened) -> None:
    from transformers import AutoTokenizer

    needed = [name for name in ("sentencepiece", "google.protobuf") if not _installed(name)]
    if needed and {file.name for file in raw.iterdir()} <= {"tokenizer.model", "tokenizer_config.json"}:
        raise CheckpointError(
            f"{opened.files.path}: its tokenizer is a SentencePiece model, which the library reads with"
            f" {' and '.join(needed)}",
            hint="pip install sentencepiece protobuf, or give prompts as token ids",
        )
    try:
        loaded = AutoTokenizer.from_pretrained(raw, local_files_only=True, trust_remote_code=False)
        loaded.save_pretrained(made)
    except Exception as error:
        what = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(
            f"{opened.files.path}: its tokenizer does not load: {what}",
            hint="give prompts as token ids",
        ) from None
    if not (made / "tokenizer.json").is_file():
        shutil.rmtree(made, ignore_errors=True)
        raise CheckpointError(
            f"{opened.files.path}: its tokenizer has no fast form in the library",
            hint="give prompts as token ids",
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _none(opened: Opened) -> CheckpointError:
    """The error for a checkpoint without a tokenizer, which may name one."""
    keys = ("type", "pretrained_model_name", "tokenizer_model", "model", "tokenizer_type")
    said = opened.contents.tokenizer
    named = next((str(said[key]) for key in keys if isinstance(said.get(key), str) and said[key]), "")
    what = f"; its config names {named[:60]!r}" if named else ""
    hint = "give prompts as token ids"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", named) and not named.endswith(".model"):
        hint = f"fetch the tokenizer's files of {named} from the hub, or give prompts as token ids"
    return CheckpointError(f"{opened.files.path}: no tokenizer in it{what}", hint=hint)


def _key(found: Mapping[str, Extent]) -> str:
    """Of the files' bytes, and of the libraries that read them."""
    import tokenizers
    import transformers

    digest = hashlib.blake2b(f"{transformers.__version__} {tokenizers.__version__}".encode(), digest_size=12)
    for name, extent in sorted(found.items()):
        digest.update(f"{name} {extent.nbytes}\n".encode())
        digest.update(extent.read())
    return digest.hexdigest()
