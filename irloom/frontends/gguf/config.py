"""The library's config for a GGUF file.

transformers maps llama.cpp's metadata to its config classes, but reads the whole vocabulary to do so (12 s
for Gemma's 262,144 tokens). It is given a copy of the metadata without the vocabulary instead. What it leaves
out of rotary scaling is added here, because a model without it answers wrongly and says nothing.
"""

from __future__ import annotations

import math
import struct
import tempfile
from pathlib import Path
from typing import Any

from irloom.frontends.gguf.header import Header
from irloom.ir.errors import CheckpointError

_LONG = 1 << 12  # bytes of an array that no config needs whole
_TOKENS = "tokenizer.ggml.tokens"


def read_config(header: Header) -> Any:
    """The config of the model in a GGUF file, of the class that the library gives its architecture."""
    from transformers import AutoConfig, PreTrainedConfig

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.gguf").write_bytes(_without_vocabulary(header))
        try:
            fields, _ = PreTrainedConfig.get_config_dict(folder, gguf_file="model.gguf")
            fields["vocab_size"] = _vocabulary(header)
            config = AutoConfig.for_model(**{name: _decimal(value) for name, value in fields.items()})
        except (ValueError, KeyError, NotImplementedError) as error:
            raise CheckpointError(
                f"{header.path}: transformers makes no config of `{header.architecture}`: {error}",
                hint="pip install -U transformers, or use the model's safetensors checkpoint",
            ) from None
    config.name_or_path = str(header.path)
    _add_rope_scaling(config, header)
    return config


def _decimal(value: Any) -> Any:
    """A number that the file holds in 32 bits as the decimal it was: 1e-06, not 9.999999974752427e-07."""
    import numpy as np

    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value


def _vocabulary(header: Header) -> int:
    """Rows of the embedding, which may be more than there are tokens."""
    embedding = header.entries.get("token_embd.weight")
    count = embedding.dims[0] if embedding else header.metadata.get(_TOKENS)
    if not isinstance(count, int):
        raise CheckpointError(f"{header.path}: neither `token_embd.weight` nor `{_TOKENS}`")
    return count


def _without_vocabulary(header: Header) -> bytes:
    """A GGUF file of the same metadata and tensor names, its long arrays left out and its tensors empty."""
    kept: list[bytes] = []
    with header.path.open("rb") as file:
        for key, (start, end) in header.spans.items():
            if end - start <= _LONG and key != _TOKENS:
                file.seek(start)
                kept.append(file.read(end - start))
    if _TOKENS in header.spans:
        kept.append(_string(_TOKENS) + struct.pack("<IIQ", 9, 8, 1) + _string("x"))
    names = [_string(name) + struct.pack("<IQIQ", 1, 1, 0, 0) for name in header.entries]
    head = b"GGUF" + struct.pack("<IQQ", header.version, len(names), len(kept)) + b"".join([*kept, *names])
    align = header.metadata.get("general.alignment", 32)
    return head + bytes(-len(head) % align + align)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _add_rope_scaling(config: Any, header: Header) -> None:
    key = f"{header.architecture}.rope.scaling."
    kind, factor = header.metadata.get(f"{key}type", "none"), header.metadata.get(f"{key}factor", 1.0)
    original = header.metadata.get(f"{key}original_context_length")
    if "rope_freqs.weight" in header.entries:
        _set_rope(config, _llama3_scaling(header))
    elif any(name.startswith("rope_factors_") for name in header.entries) or kind == "longrope":
        raise CheckpointError(
            f"{header.path}: longrope factors in a GGUF file are not read",
            hint="use the model's safetensors checkpoint",
        )
    elif kind == "linear" and factor != 1.0:
        _set_rope(config, {"rope_type": "linear", "factor": factor})
    elif kind == "yarn" and header.architecture != "gpt-oss" and factor != 1.0:
        original = original or int(config.max_position_embeddings / factor)
        _set_rope(
            config, {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        )


def _set_rope(config: Any, scaling: dict[str, Any]) -> None:
    """Scale the rotary embedding; where sliding layers have their own, only that of full attention."""
    ropes = config.rope_parameters
    (ropes.get("full_attention") or ropes).update(scaling)


def _llama3_scaling(header: Header) -> dict[str, Any]:
    """Llama 3.1's scaling, which GGUF stores as one factor a frequency, from those factors."""
    import torch

    from irloom.ir.mapped import map_tensor

    entry = header.entries["rope_freqs.weight"]
    factors: list[float] = map_tensor(header.path, entry.offset, entry.dims, torch.float32).tolist()
    scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    base = header.metadata.get(f"{header.architecture}.rope.freq_base", 10000.0)
    wanted: list[float] = []
    for i in range(len(factors)):
        turns = 8192 / (2 * math.pi * base ** (i / len(factors)))
        smooth = min(max((turns - 1) / 3, 0.0), 1.0)
        wanted.append(1 / ((1 - smooth) / max(factors) + smooth))
    if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(factors, wanted, strict=True)):
        raise CheckpointError(
            f"{header.path}: `rope_freqs.weight` does not hold Llama 3.1's factors",
            hint="use the model's safetensors checkpoint",
        )
    return {"rope_type": "llama3", "factor": round(max(factors), 4), **scaling}
