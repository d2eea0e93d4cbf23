"""The tokenizer in a GGUF file, converted once and kept as a directory of tokenizer files."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from irloom.frontends.gguf.header import Header
from irloom.ir.errors import CheckpointError


def tokenizer_files(header: Header, config: Any, cache: Path) -> Path:
    """A directory with tokenizer.json and its config, made on the first call and found under ``cache`` later.

    Written beside its place and renamed, so that a directory that is there is whole.
    """
    place = cache / f"tokenizer-{_fingerprint(header)}"
    if not (place / "tokenizer.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache, prefix=".tokenizer-"))
        try:
            _load(header, config).save_pretrained(made)
            made.rename(place)
        except OSError:
            if not (place / "tokenizer.json").is_file():  # else another process was first
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return place


def _fingerprint(header: Header) -> str:
    """Of the metadata's bytes, which hold the whole vocabulary, and of the libraries that convert it."""
    import tokenizers
    import transformers

    digest = hashlib.blake2b(f"{transformers.__version__} {tokenizers.__version__}".encode(), digest_size=12)
    ends = [end for _, end in header.spans.values()]
    with header.path.open("rb") as file:
        digest.update(file.read(max(ends, default=0)))
    return digest.hexdigest()


def _load(header: Header, config: Any) -> Any:
    """As ``AutoTokenizer.from_pretrained(gguf_file=)`` does, without reading all metadata a second time."""
    from transformers import TOKENIZER_MAPPING, TokenizersBackend

    kind = TOKENIZER_MAPPING.get(type(config), None) or TokenizersBackend
    if isinstance(kind, tuple):
        kind = next(k for k in kind[::-1] if k is not None)
    path = header.path.resolve()
    try:
        return kind.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except Exception as error:  # tokenizers raises bare ones
        stored = header.metadata.get("tokenizer.ggml.model", "none")
        raise CheckpointError(
            f"{header.path}: its tokenizer (`{stored}`) does not convert: {error}".splitlines()[0],
            hint="give prompts as token ids, or a Hugging Face directory with the tokenizer's files",
        ) from None
