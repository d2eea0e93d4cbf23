"""The sizes of a model that transformers does not know."""

from transformers import PreTrainedConfig


class PebbleConfig(PreTrainedConfig):
    model_type = "pebble"

    vocab_size: int = 320
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 128
    logit_scale: float = 1.5
    bos_token_id: int = 0
    eos_token_id: int = 1
