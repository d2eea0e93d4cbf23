"""Rotary scaling of GGUF files: what the metadata says, and factors that are stored as tensors.

The library's mapping drops most of it; a model without it answers wrongly and says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from irloom.frontends.gguf.header import Header
from irloom.ir.errors import CheckpointError

FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that are read into the config."""

_LOW, _HIGH = 1.0, 4.0  # of Llama 3.1's scaling, in every model that has it
_YARN = {
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
    "yarn_attn_factor": "attention_factor",
}


def add_rope(config: Any, header: Header) -> None:
    """Add to ``config`` what a file says of its rotary embedding beyond the base."""
    ropes = getattr(config, "rope_parameters", None)
    if not isinstance(ropes, dict):
        return
    full: dict[str, Any] = ropes.get("full_attention") or ropes
    _add_width(full, config, header)
    kind = header.fact("rope.scaling.type", "none")
    factor = header.decimal(header.fact("rope.scaling.factor", 1.0))
    if "rope_freqs.weight" in header.entries:
        full.update(_llama3(header, full["rope_theta"]))
    elif "rope_factors_short.weight" in header.entries:
        _add_longrope(full, config, header)
    elif kind == "linear" and factor != 1.0:
        full.update({"rope_type": "linear", "factor": factor})
    elif kind == "yarn" and factor != 1.0:
        full.update(_yarn(config, header, factor))
    if (local := header.fact("rope.freq_base_swa", None)) and "sliding_attention" in ropes:
        ropes["sliding_attention"]["rope_theta"] = header.decimal(local)


def _add_width(rope: dict[str, Any], config: Any, header: Header) -> None:
    """How much of a head rotates."""
    width = header.fact("rope.dimension_count", None)
    if getattr(config, "num_attention_heads", None) == 0:
        raise CheckpointError(
            f"{header.path}: `{header.architecture}.attention.head_count` is 0",
            hint="the file is damaged: download it again",
        )
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if not width or getattr(config, "kv_lora_rank", None):
        return
    if width != head or rope.get("partial_rotary_factor", 1.0) != 1.0:
        rope["partial_rotary_factor"] = width / head


def _yarn(config: Any, header: Header, factor: float) -> dict[str, Any]:
    original = header.fact("rope.scaling.original_context_length", None)
    found = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original or int(config.max_position_embeddings / factor),
    }
    for key, name in _YARN.items():
        if (value := header.fact(f"rope.scaling.{key}", None)) is not None:
            found[name] = header.decimal(value)
    scale = header.fact("rope.scaling.yarn_log_multiplier", None)
    if scale:  # stored as a tenth of DeepSeek's
        found |= {"mscale": round(scale * 10, 6), "mscale_all_dim": round(scale * 10, 6)}
    return found


def _add_longrope(rope: dict[str, Any], config: Any, header: Header) -> None:
    """Factors for short and for long texts, one a frequency each."""
    short, long = _read(header, "rope_factors_short.weight"), _read(header, "rope_factors_long.weight")
    original = header.fact("rope.scaling.original_context_length", None)
    if not original or len(short) != len(long):
        raise CheckpointError(
            f"{header.path}: {len(short)} short and {len(long)} long factors for a length of {original}",
            hint="the file is damaged; use the model's safetensors checkpoint",
        )
    rope.update(
        rope_type="longrope",
        short_factor=short,
        long_factor=long,
        original_max_position_embeddings=original,
        factor=config.max_position_embeddings / original,
    )
    if (scale := header.fact("rope.scaling.attn_factor", None)) is not None:
        rope["attention_factor"] = header.decimal(scale)
    config.original_max_position_embeddings = original


def _read(header: Header, name: str) -> list[float]:
    import torch

    from irloom.ir.mapped import map_tensor

    entry = header.entries.get(name)
    if entry is None or entry.kind != 0 or len(entry.dims) != 1:
        raise CheckpointError(
            f"{header.path}: `{name}` is missing, or is not one f32 a frequency",
            hint="use the model's safetensors checkpoint",
        )
    values: list[float] = map_tensor(header.path, entry.offset, entry.dims, torch.float32).tolist()
    return values


def _llama3(header: Header, base: float) -> dict[str, Any]:
    """Llama 3.1's scaling, which GGUF stores as one factor a frequency, from those factors.

    Between frequencies that stay (factor 1) and those that are divided whole, a factor says how many turns
    its frequency makes in the original length, and so that length.
    """
    factors = _read(header, "rope_freqs.weight")
    most = max(factors, default=1.0)
    guesses = {8192} | {_length(f, most, i, len(factors), base) for i, f in enumerate(factors)}
    for length in sorted(g for g in guesses if g):
        if _holds(factors, most, length, base):
            return {
                "rope_type": "llama3",
                "factor": header.decimal(most),
                "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH,
                "original_max_position_embeddings": length,
            }
    raise CheckpointError(
        f"{header.path}: `rope_freqs.weight` does not hold Llama 3.1's factors",
        hint="use the model's safetensors checkpoint",
    )


def _length(factor: float, most: float, i: int, count: int, base: float) -> int:
    """The original length that one factor between 1 and ``most`` tells of; 0 where it tells nothing."""
    if not 1.001 < factor < most * 0.999:
        return 0
    smooth = (1 / factor - 1 / most) / (1 - 1 / most)
    return round((_LOW + smooth * (_HIGH - _LOW)) * 2 * math.pi * base ** (i / count))


def _holds(factors: Sequence[float], most: float, length: int, base: float) -> bool:
    wanted: list[float] = []
    for i in range(len(factors)):
        turns = length / (2 * math.pi * base ** (i / len(factors)))
        smooth = min(max((turns - _LOW) / (_HIGH - _LOW), 0.0), 1.0)
        wanted.append(1 / ((1 - smooth) / most + smooth))
    return all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(factors, wanted, strict=True))
