"""What each field of a config becomes in a tiny one, by the field's name.

The sizes are the smallest at which heads still group, windows still cut and experts still compete. A field
that no row names stays as it is.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, ROTARY = 64, 4, 2, 16, 8
VOCAB, POSITIONS, ORIGINAL, WINDOW = 256, 512, 256, 8
INNER, EXPERT_INNER, EXPERTS, CHOSEN = 128, 32, 4, 2
RANK = 32
"""Of the latents of multi-head latent attention."""


@dataclass(frozen=True)
class Field:
    """A field of a config: its name, its value, and all fields of the config by name.

    ``thorough`` asks for what the config may leave out, such as fewer key-value heads than heads.
    """

    name: str
    value: Any
    config: Mapping[str, Any]
    thorough: bool = False


Size = int | float | Callable[[Field], Any]


def small(field: Field) -> Any:
    """The value of a field in the tiny config; the value itself where it stays."""
    value = field.value
    for pattern, size in SIZES:
        if pattern.fullmatch(field.name):
            if callable(size):
                return size(field)
            return value if isinstance(value, dict | list | tuple) or value is None else size
    return value


def _kv_heads(f: Field) -> Any:
    """One stays one, as many as heads stay so unless grouped ones are asked for, and so do latents of MLA."""
    heads = next((f.config[n] for n in HEAD_COUNTS if isinstance(f.config.get(n), int)), None)
    if f.value == 1 or (f.value is None and not f.thorough):
        return f.value
    whole = "kv_lora_rank" in f.config or (f.value == heads and not f.thorough)
    return HEADS if whole else KV_HEADS


def _heads(f: Field) -> int:
    """Those of a state space fill its inner width."""
    expand = f.config.get("expand")
    return int(expand * HIDDEN) // HEAD_DIM if expand and "state_size" in f.config else HEADS


def _head_dim(f: Field) -> Any:
    """Of the rotated part where the config says so, of both parts, or of a plain head."""
    rotated = f.config.get("qk_rope_head_dim")
    if f.value is None:
        return None
    if rotated is None:
        return HEAD_DIM
    if f.value == rotated:
        return ROTARY
    return HEAD_DIM + ROTARY if f.value == f.config.get("qk_nope_head_dim", 0) + rotated else HEAD_DIM


def _unless_none(size: int) -> Callable[[Field], Any]:
    return lambda f: f.value if f.value is None else size


def _if_int(size: int) -> Callable[[Field], Any]:
    return lambda f: size if isinstance(f.value, int) and not isinstance(f.value, bool) else f.value


def _if_any(size: int) -> Callable[[Field], Any]:
    """``size`` where there is any; no more than there are."""
    return lambda f: min(size, f.value) if isinstance(f.value, int) and f.value else f.value


def _token(f: Field) -> Any:
    """An id inside the tiny vocabulary, another one for each name."""
    if not isinstance(f.value, int) or f.value < VOCAB:
        return f.value
    return 3 + zlib.crc32(f.name.encode()) % 200


HEAD_COUNTS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")

_ROWS: tuple[tuple[str, Size], ...] = (
    ("(decoder_)?vocab_size(_per_layer_input)?|n_vocab|text_vocab_size|n_words", VOCAB),
    (
        (
            "hidden_size|d_model|n_embd|n_embed|dim|word_embed_proj_dim|embedding_dim|embed_dim|emb_dim"
            "|embedding_size|d_embed"
        ),
        HIDDEN,
    ),
    ("num_heads", _heads),
    ("((num|encoder|decoder|num_encoder|num_decoder)_(attention_)?|n_)heads|n_head", HEADS),
    ("(swa_)?num_attention_heads", HEADS),
    (
        (
            "(swa_)?num_key_value_heads|num_kv_heads|n_kv_heads|num_self_attention_key_value_heads"
            "|multi_query_group_num"
        ),
        _kv_heads,
    ),
    ("num_global_key_value_heads", _unless_none(1)),
    ("head_dim", _head_dim),
    ("(swa_|global_|attention_)head_dim|kv_channels|(swa_)?v_head_dim", _unless_none(HEAD_DIM)),
    ("qk_head_dim", _unless_none(HEAD_DIM + ROTARY)),
    ("d_kv|qk_nope_head_dim", HEAD_DIM),
    ("qk_rope_head_dim|rotary_dim", ROTARY),
    ("q_lora_rank|kv_lora_rank|moe_latent_size", _unless_none(RANK)),
    ("embedding_rank|.*_lora_rank|lora_rank|adapter_rank", _unless_none(HEAD_DIM)),
    ("o_groups", 2),
    ("index_n_heads|index_num_heads", 16),  # fewer leave many keys with a score of 0, all alike
    ("index_head_dim", HEAD_DIM),
    ("index_topk(_blocks)?|index_top_k", 8),
    (
        "moe_.*intermediate_size|(shared_)?expert_intermediate_size|expert_ffn_hidden_size|expert_ffn_dim",
        _unless_none(EXPERT_INNER),
    ),
    (
        (
            "(\\w+_)?intermediate_size(_mlp)?|((en|de)coder_)?ffn_dim|d_ff|n_inner|ffn_hidden_size|dff"
            "|mlp_hidden_size|d_inner|feed_forward_hidden_size|block_ff_dim|dim_ff|num_decoder_ffn_dim|block_dim"
        ),
        _unless_none(INNER),
    ),
    (
        "((n_routed|num_local|moe_num|num|n)_experts|moe_num_primary_experts)",
        lambda f: EXPERTS if f.value else f.value,
    ),
    ("zero_expert_num|num_zero_experts", 2),
    (
        "num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts|num_selected_experts",
        _if_any(CHOSEN),
    ),
    ("n_shared_experts|num_shared_experts|moe_num_shared_experts|topk_group", _if_any(1)),
    ("n_groups?|num_expert_group|mamba_n_?groups", _if_any(2)),
    ("first_k_dense_replace|moe_layer_start_index|num_dense_layers", _if_any(1)),
    ("mamba_d_state|ssm_state_size|state_size|mamba_state_dim", HEAD_DIM),
    ("mamba_(d_head|head_?dim)|linear_(key|value)_head_dim|(kda|linear)_head_dim", _if_int(HEAD_DIM)),
    (
        "mamba_n(um)?_heads|n_mamba_heads",
        lambda f: f.value if f.value in (1, 2) else 2 * HIDDEN // HEAD_DIM,
    ),
    ("mamba_d_ssm", _unless_none(2 * HIDDEN)),
    ("(mamba_)?expand", 2),
    ("mamba_dt_rank|time_step_rank|laurel_rank", _if_int(8)),
    ("(mamba_)?chunk_size", _if_any(8)),
    ("linear_num_key_heads", KV_HEADS),
    ("linear_num_value_heads|(kda|linear)_num_heads", HEADS),
    ("lru_width|attention_hidden_size", _unless_none(HIDDEN)),
    (
        (
            "sliding_window(_size)?|attention_window_size|attention_chunk_size|local_attention|window_size"
            "|swa_window"
        ),
        _if_int(WINDOW),
    ),
    ("rel_extent", _if_int(2 * WINDOW)),
    (
        (
            "max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|context_length|seq_length"
            "|max_target_positions"
        ),
        _if_int(POSITIONS),
    ),
    ("original_max_position_embeddings", _unless_none(ORIGINAL)),
    ("((en|de)coder_)?layerdrop", 0.0),
    (
        ".*dropout.*|.*_pdrop|.*_drop_prob|.*jitter_noise",
        lambda f: 0.0 if isinstance(f.value, float) else f.value,
    ),
    ("(num_)?encoder_layers", 2),
    ("relation_attention_bucket|num_nextn_predict_layers|mtp_num_hidden_layers", 0),
    ("hidden_size_per_layer_input|altup_.*_dim", _if_any(16)),
    ("audio_vocab_size|codebook_size", 64),
    ("pad_token_id", _unless_none(0)),
    ("bos_token_id|decoder_start_token_id", _unless_none(1)),
    ("eos_token_id|sep_token_id", _unless_none(2)),
    (".*_token_(id|index)", _token),
    ("image_size", _if_int(32)),
    ("patch_size", _if_int(8)),
    ("num_channels", 3),
)
SIZES: tuple[tuple[re.Pattern[str], Size], ...] = tuple((re.compile(p), size) for p, size in _ROWS)
"""Name of a field to its size, or to a function of the field; the first name that fits counts."""
