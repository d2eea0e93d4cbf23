"""The library's config for a GGUF file.

Most architectures' metadata is read by ``fields.py``; others go through transformers' own mapping.
That reads the whole vocabulary to do so (12 s for Gemma's 262,144 tokens), so it is given a copy of the
metadata without it.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

from irloom.frontends.gguf.architectures import ARCHITECTURES
from irloom.frontends.gguf.fields import own_config
from irloom.frontends.gguf.header import TOKENS, Header
from irloom.frontends.gguf.rope import add_rope
from irloom.ir.errors import CheckpointError

_LONG = 1 << 12  # bytes of an array that no config needs whole


def read_config(header: Header) -> Any:
    """The config of the model in a GGUF file, of the class that the library gives its architecture."""
    known = header.architecture in ARCHITECTURES
    config = own_config(header) if known else _library_config(header)
    config.name_or_path = str(header.path)
    add_rope(config, header)
    return config


def _library_config(header: Header) -> Any:
    from transformers import AutoConfig, PreTrainedConfig

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.gguf").write_bytes(_without_vocabulary(header))
        try:
            fields, _ = PreTrainedConfig.get_config_dict(folder, gguf_file="model.gguf")
            fields["vocab_size"] = header.vocabulary
            return AutoConfig.for_model(**{name: header.decimal(value) for name, value in fields.items()})
        except Exception as error:  # whatever values that it did not expect make it raise
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{header.path}: transformers makes no config of `{header.architecture}`: {why}",
                hint=_remedy(header),
            ) from None


def _remedy(header: Header) -> str:
    """What may help: a newer library where this one lacks the architecture, else another copy of the file."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    known = {name.replace("_", "").replace("-", "") for name in GGUF_SUPPORTED_ARCHITECTURES}
    if header.architecture.replace("_", "").replace("-", "") in known:
        return "its metadata may be damaged: download it again, or use the model's safetensors checkpoint"
    return "pip install -U transformers, or use the model's safetensors checkpoint"


def _without_vocabulary(header: Header) -> bytes:
    """A GGUF file of the same metadata and tensor names, its long arrays left out and its tensors empty."""
    kept: list[bytes] = []
    with header.path.open("rb") as file:
        for key, (start, end) in header.spans.items():
            if end - start <= _LONG and key != TOKENS:
                file.seek(start)
                kept.append(file.read(end - start))
    if TOKENS in header.spans:
        kept.append(_string(TOKENS) + struct.pack("<IIQ", 9, 8, 1) + _string("x"))
    names = [_string(name) + struct.pack("<IQIQ", 1, 1, 0, 0) for name in header.entries]
    head = b"GGUF" + struct.pack("<IQQ", header.version, len(names), len(kept)) + b"".join([*kept, *names])
    align = header.metadata.get("general.alignment", 32)
    return head + bytes(-len(head) % align + align)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
