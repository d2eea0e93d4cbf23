"""What the tiny model of an architecture needs that the sizes by field name do not give.

Rows are by model type and hold for sub-configs too. There are three reasons for one: the default instance
leaves a needed field out, fields depend on each other, or defaults hide a feature of the architecture.
"""

from __future__ import annotations

from typing import Any

from irloom.frontends.hf.tiny import ABSENT, Change
from irloom.frontends.hf.tiny_sizes import CHOSEN, EXPERTS, HEAD_DIM, HEADS, HIDDEN, INNER, KV_HEADS, WINDOW


def _row(layers: int | None = None, **fields: Any) -> Change:
    return Change(fields, layers)


_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
_MIXED = ["full_attention", "sliding_attention"] * 2
_WINDOWED = {"layer_types": _MIXED, "use_sliding_window": True, "sliding_window": WINDOW}
_NARROW = {
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "head_dim": 24,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "qk_rope_head_dim": 8,
}

NEEDED = {
    "hunyuan_v1_dense": _row(head_dim=HEAD_DIM, num_key_value_heads=KV_HEADS),
    "hunyuan_v1_moe": _row(head_dim=HEAD_DIM, num_key_value_heads=KV_HEADS),
    "ministral": _row(4, head_dim=HEAD_DIM, layer_types=_MIXED),
    "dots1": _row(
        3,
        n_shared_experts=1,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        first_k_dense_replace=1,
        layer_types=_MIXED[:3],
    ),
    "lfm2_moe": _row(4, layer_types=["conv", "full_attention"] * 2),
    "qwen4_exp_text": _row(
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        indexer_n_heads=16,
        indexer_kv_heads=1,
        indexer_head_dim=HEAD_DIM,
        indexer_budget=16,
        indexer_compress_ratio=4,
        hc_lowrank=16,
        ngram_vocab_size_base=512,
        split_ngram_parts=4,
        make_ngram_vocab_size_divisible_by=8,
    ),
    "cohere_compass_text": _row(
        4,
        rope_parameters={kind: {**_ROPE, "mrope_section": [3, 3, 2]} for kind in _MIXED},
        layer_types=_MIXED,
    ),
    "xmod": _row(languages=["en_XX", "de_DE"], default_language="de_DE"),
}
"""The default instance leaves a field out that a model needs."""

JOINED = {
    "dots3_note_text": _row(num_key_value_heads=HEADS, per_layer_config={2: _NARROW, 3: _NARROW}),
    "dots3_note": _row(
        vision_config={"adapter_in_dim": HIDDEN, "adapter_out_dim": HIDDEN, "per_layer_config": {}},
        audio_config={"adapter_input_size": HIDDEN, "adapter_out_dim": HIDDEN},
    ),
    "blt": _row(
        encoder_hash_byte_group_vocab=512,
        encoder_config={"hidden_size_global": HIDDEN},
        decoder_config={"hidden_size_global": HIDDEN},
    ),
    "deepseek_v2": _row(num_experts_per_tok=CHOSEN),
    "reformer": _row(
        axial_pos_embds_dim=[16, 48],
        axial_pos_shape=[16, 32],
        attn_layers=["local", "lsh"] * 2,
        num_buckets=4,
        is_decoder=True,
        attention_head_size=HEAD_DIM,
        local_attn_chunk_length=8,
        lsh_attn_chunk_length=8,
        num_hidden_layers=ABSENT,
    ),
    "zamba": _row(
        5,
        layers_block_type=["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"],
        attention_hidden_size=2 * HIDDEN,
        attention_head_dim=32,
    ),
    "gemma3n_text": _row(
        6,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 3,
        intermediate_size=[INNER] * 6,
        activation_sparsity_pattern=[0.95, 0.0] * 3,
    ),
    "gemma4_text": _row(6, num_kv_shared_layers=2, layer_types=["sliding_attention", "full_attention"] * 3),
    "dbrx": _row(
        attn_config={"kv_n_heads": KV_HEADS, "rope_theta": 10000.0, "clip_qkv": 8.0},
        ffn_config={"ffn_hidden_size": 64, "moe_num_experts": EXPERTS, "moe_top_k": CHOSEN},
    ),
}
"""Fields depend on each other."""

SHOWN = {
    "granitemoehybrid": _row(
        4,
        layer_types=["linear_attention", "full_attention"] * 2,
        position_embedding_type="rope",
        num_key_value_heads=KV_HEADS,
    ),
    "bamba": _row(4, attn_layer_indices=[1, 3], num_key_value_heads=KV_HEADS),
    "jamba": _row(4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=0),
    "mellum": _row(4, layer_types=_MIXED, mlp_layer_types=["sparse"] * 4),
    "laguna": _row(4, layer_types=_MIXED, num_attention_heads_per_layer=[4, 8, 4, 8]),
    "lfm2": _row(4, layer_types=["conv", "full_attention"] * 2),
    "minimax_m3_vl_text": _row(
        4,
        layer_types=["full_attention", "minimax_m3_sparse"] * 2,
        mlp_layer_types=["dense", "sparse"] * 2,
        index_block_size=4,
        index_topk_blocks=3,
        index_n_heads=KV_HEADS,
    ),
    "recurrent_gemma": _row(6),
    "xlm": _row(causal=True),
    "xlnet": _row(attn_type="uni"),
    "smollm3": _row(4, no_rope_layer_interval=2, no_rope_layers=[1, 0, 1, 0], **_WINDOWED),
    "zaya": _row(
        4,
        num_experts_per_tok=1,
        layer_types=["hybrid", "hybrid_sliding"] * 2,
        sliding_window=WINDOW,
    ),
    "qwen2": _row(4, **_WINDOWED),
    "qwen2_moe": _row(4, **_WINDOWED),
    "qwen3": _row(4, **_WINDOWED),
    "zamba2": _row(
        5,
        layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid", "linear_attention"],
        use_mem_rope=True,
    ),
    "llama": _row(num_key_value_heads=KV_HEADS, rope_parameters=_LLAMA3),
    "phi3": _row(num_key_value_heads=KV_HEADS, sliding_window=WINDOW),
    "mistral": _row(sliding_window=WINDOW),
    "mixtral": _row(sliding_window=WINDOW),
}
"""Defaults hide a feature of the architecture."""

OVERRIDES: dict[str, Change] = {**NEEDED, **JOINED, **SHOWN}

REFUSED = {
    "gemma4_assistant": "a draft head: it takes the target model's hidden states, not tokens alone",
    "gemma4_unified_assistant": "a draft head: it takes the target model's hidden states, not tokens alone",
    "musicgen": "its input is audio codes [codebooks * batch, T], not token ids",
    "musicgen_melody": "its input is audio codes [codebooks * batch, T], not token ids",
    "gemma3n": "its image tower is a model of another library (timm); its text part is gemma3n_text",
}
"""Entries of the library's table of causal models that are none on their own, and why."""
