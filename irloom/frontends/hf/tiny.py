"""A tiny config with the structure of a given one, for checking an architecture without its weights."""

from __future__ import annotations

import copy
import re
from typing import Any

from irloom.ir.errors import TraceError

HEADS, HEAD_DIM, HIDDEN, VOCAB, POSITIONS, WINDOW = 4, 16, 64, 96, 512, 8
SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size|n_vocab", VOCAB),
    (r"hidden_size|d_model|n_embd|dim|word_embed_proj_dim|embedding_size", HIDDEN),
    (r"(n_inner|ffn_dim|d_ff|(\w+_)?intermediate_size|ffn_hidden_size)", 96),
    (r"num_attention_heads|n_head|n_heads|num_heads", HEADS),
    (r"head_dim|global_head_dim|kv_channels", HEAD_DIM),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length", POSITIONS),
    (r"original_max_position_embeddings", 64),
    (r"sliding_window|attention_window_size", WINDOW),
    (r"rotary_dim", HEAD_DIM // 2),
)
"""What a field of a config is in the tiny one, by its name; fields that are not numbers stay."""

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "multi_query_group_num")


def with_layers(config: Any, count: int) -> Any:
    """A copy of ``config`` with its first ``count`` layers."""
    return _keep(config, list(range(min(count, _layers(config)))))


def tiny_config(config: Any) -> Any:
    """A copy of ``config`` with small sizes and one layer per kind of layer, at least two; flags stay.

    Its config class is the same, and whatever a constructor checks is checked again: a failure is a
    ``TraceError``.
    """
    try:
        return _tiny(config)
    except Exception as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(
            f"no tiny {type(config).__name__} to check the architecture with:"
            f" {type(error).__name__}: {' '.join(str(error).split())}",
            hint="trace without the check: trace_hf(..., check=False)",
        ) from error


def _tiny(config: Any) -> Any:
    text = config.get_text_config(decoder=True)
    kinds = list(getattr(text, "layer_types", None) or [])
    firsts = {kind: i for i, kind in reversed(list(enumerate(kinds)))}
    kept = sorted(firsts.values())
    kept = sorted({*kept, *range(2)}) if len(kept) < 2 else kept
    small = _keep(config, kept)
    fields = small.get_text_config(decoder=True)
    for name, value in list(fields.to_dict().items()):
        if isinstance(value, int) and not isinstance(value, bool):
            _set(fields, name, _small(name, value, text))
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            _set(fields, name, _small_rope(value))
    return type(small).from_dict(small.to_dict())


def _small(name: str, value: int, config: Any) -> int:
    if name in KV_HEADS:
        heads = getattr(config, "num_attention_heads", HEADS)
        return 1 if value == 1 else HEADS if value == heads else HEADS // 2
    if name.endswith("_token_id"):
        return min(value, VOCAB - 1)
    return next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), value)


def _small_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Rope settings, or settings per kind of layer. Factors per frequency are cut to the tiny head dim."""
    out = dict(rope)
    for name, value in rope.items():
        if isinstance(value, dict):
            out[name] = _small_rope(value)
        elif name == "original_max_position_embeddings":
            out[name] = 64
        elif isinstance(value, list):
            share = rope.get("partial_rotary_factor", 1.0)
            out[name] = value[: int(HEAD_DIM * share) // 2]
    return out


def _layers(config: Any) -> int:
    text = config.get_text_config(decoder=True)
    found = next((getattr(text, name) for name in LAYERS if getattr(text, name, None)), None)
    if found is None:
        raise TraceError(f"{type(config).__name__} does not say how many layers it has")
    return int(found)


def _keep(config: Any, layers: list[int]) -> Any:
    """A copy with these layers; lists with an entry per layer are cut alike."""
    total = _layers(config)
    config = copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    for name, value in list(text.to_dict().items()):
        if name in LAYERS:
            _set(text, name, len(layers))
        elif isinstance(value, list) and len(value) == total and total > 1 and not name.endswith("token_id"):
            _set(text, name, [value[i] for i in layers])
    return config


def _set(config: Any, name: str, value: Any) -> None:
    if getattr(config, name, None) != value:
        setattr(config, name, value)
